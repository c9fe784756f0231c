"""The weights of an ONNX model in 8 bits, by onnxruntime's dynamic quantisation."""

from __future__ import annotations

from pathlib import Path


def quantise(source: Path, target: Path) -> None:
    """Write the ONNX model of the file `source` with weights in 8 bits to the file `target`.

    Weights of matrix products have a scale for each column and 7 of the 8 bits; embeddings have a
    scale for each table. Activations are quantised while the model runs: docs/decisions/0024.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(source)
    add_pre_process_metadata(model)  # the exporter has folded constants and shapes already
    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        reduce_range=True,  # 8 bits overflow the 16-bit sums of processors without VNNI
        weight_type=QuantType.QInt8,
    )
