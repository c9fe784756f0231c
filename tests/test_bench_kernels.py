"""kdcache bench kernels: right answers are timed, wrong ones named, regressions found."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.bench import kernels_grid
from kdcache.bench.kernels import bench_kernels, kernels_sha256
from kdcache.bench.kernels_case import Case, Rival
from kdcache.bench.kernels_cases import CASES, OPS, RIVALS
from kdcache.bench.kernels_check import Check, relative_error
from kdcache.bench.kernels_grid import DTYPES, Grid, default_grid
from kdcache.bench.kernels_inputs import Formula, Size, Tensors
from kdcache.bench.kernels_keeping import ENVIRONMENT, KEEPING, best_rival
from kdcache.bench.kernels_plot import cases, draw, messages
from kdcache.bench.limits import CARDS, floor, predict
from kdcache.bench.report import (
    TOLERANCE,
    load_report,
    machine,
    regressions,
    save_report,
)
from kdcache.bench.timing import Contender, Stopwatch, copy_probe, gemm_probe, interleave
from kdcache.errors import ConfigError, MismatchError
from kdcache_cli.bench_report import NOISE
from kdcache_kernels import topk_kl

CPU = torch.device("cpu")
SIZE = Size(rows=19, vocab=257, k=8, hidden=48)
TINY: dict[str, Any] = {
    "rows": (19,),
    "tokens": (19,),
    "vocab": (257,),
    "k": 8,
    "hidden": (48,),
    "repeats": 1,
}
PLAIN = ("eager", "eager, own gradient", "TRL", "axolotl")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Every case, once, at tiny sizes, under both allocators."""
    return bench_kernels(Grid(**TINY, rivals=PLAIN), CPU)


def case_of(op: str, variant: str) -> Case:
    return next(case for case in CASES if (case.op, case.variant) == (op, variant))


@pytest.mark.slow
def test_every_case_is_right_timed_and_compared(report: dict[str, Any]) -> None:
    assert report["refused"] == []
    assert [(row["op"], row["variant"]) for row in report["rows"]] == [
        (case.op, case.variant) for case in CASES
    ]
    for case, row in zip(CASES, report["rows"], strict=True):
        assert set(case.sizes) <= set(row)
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert row["share_of_limit"] == row["limit_seconds"] / row["seconds"]
        assert row["bytes_per_s"] * row["seconds"] == pytest.approx(row["bytes"])
        assert set(row["error"]) == set(case.outputs)
        assert set(row["rivals"]) == {rival.name for rival in case.rivals} & set(PLAIN)
        for rival in row["rivals"].values():
            assert rival["ratio"] == pytest.approx(rival["seconds"] / row["seconds"])


@pytest.mark.slow
def test_the_best_rival_is_the_one_with_the_least_ratio_under_either_allocator(
    report: dict[str, Any],
) -> None:
    assert report["left_out"] == []
    for row in report["rows"]:
        ratios = []
        for rival in row["rivals"].values():
            again = rival[KEEPING]
            assert again["ratio"] == pytest.approx(again["seconds"] / row[KEEPING]["seconds"])
            ratios += [rival["ratio"], again["ratio"]]
        assert row["best"]["ratio"] == min(ratios)
    assert len(report["goals"]) == len(report["rows"])
    for goal, row in zip(report["goals"], report["rows"], strict=True):
        assert goal["value"] == row["best"]["ratio"]
        assert goal["met"] == (goal["value"] >= goal["bound"])
    assert best_rival({"rivals": {"eager": {"absent": "not here"}}}) is None


@pytest.mark.slow
def test_an_allocator_that_hands_pages_back_all_the_same_is_said_and_the_rest_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setitem(ENVIRONMENT, "MALLOC_TRIM_THRESHOLD_", "65536")
    grid = Grid(**TINY, ops=("quantize_rows",), rivals=("eager",))
    found = bench_kernels(grid, CPU)
    (left_out,) = found["left_out"]
    assert left_out.endswith("this C library's allocator hands pages back whatever it is told")
    (row,) = found["rows"]
    assert row["best"]["allocator"] == "default"


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    grid = Grid(**TINY, ops=("quantize_rows", "hidden_mse"), rivals=(), allocators=("default",))
    notes = tmp_path / "made" / "notes.jsonl"
    whole = bench_kernels(grid, CPU, notes=notes)["rows"]
    head, first, *rest = notes.read_text().splitlines(keepends=True)
    assert len(rest) == len(whole) - 1
    notes.write_text(head + first + rest[0][:20])  # stopped while it wrote
    again = bench_kernels(grid, CPU, notes=notes)["rows"]
    assert [row["variant"] for row in again] == [row["variant"] for row in whole]
    kept = [row["seconds"] == before["seconds"] for row, before in zip(again, whole, strict=True)]
    assert kept[0]
    assert not all(kept)
    assert len(notes.read_text().splitlines()) == 1 + len(whole)


@pytest.mark.slow
def test_a_run_that_was_stopped_under_the_second_allocator_goes_on_there(tmp_path: Path) -> None:
    grid = Grid(**TINY, ops=("topk_kl",), rivals=("eager",))
    notes = tmp_path / "notes.jsonl"
    whole = bench_kernels(grid, CPU, notes=notes)["rows"]
    lines = notes.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * len(whole)
    notes.write_text("".join(lines[:-1]))
    again = bench_kernels(grid, CPU, notes=notes)["rows"]
    kept = [one[KEEPING] == row[KEEPING] for one, row in zip(whole, again, strict=True)]
    assert kept == [True] * (len(whole) - 1) + [False]


def test_notes_of_something_else_are_begun_anew(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    grids = [
        Grid(**TINY | {"rows": (n,), "tokens": (n,)}, ops=("quantize_rows",), rivals=())
        for n in (19, 23)
    ]
    rows = [
        bench_kernels(dataclasses.replace(one, allocators=("default",)), CPU, notes=notes)
        for one in grids
    ]
    assert [row["rows"] for report in rows for row in report["rows"]] == [19, 23]
    assert len(notes.read_text().splitlines()) == 2


def test_notes_of_other_kernels_are_begun_anew(tmp_path: Path) -> None:
    grid = Grid(**TINY, ops=("quantize_rows",), rivals=(), allocators=("default",))
    notes = tmp_path / "notes.jsonl"
    first = bench_kernels(grid, CPU, notes=notes)["rows"]
    assert bench_kernels(grid, CPU, notes=notes)["rows"] == first
    text = notes.read_text()
    notes.write_text(text.replace(kernels_sha256(), "0" * 64))
    assert bench_kernels(grid, CPU, notes=notes)["rows"] != first
    assert kernels_sha256() in notes.read_text()


@pytest.mark.slow
def test_only_products_have_a_rate_of_products(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert (row["flops"] > 0) == row["op"].startswith(("linear", "relation", "attention"))
        assert row["bound"] == "copy" or row["bound"].startswith("gemm")


def test_tokens_of_unlike_documents_are_packed_before_the_clock_starts() -> None:
    case = case_of("relation_kl", "12 heads, ragged")
    x = case.draw(dataclasses.replace(SIZE, rows=400), torch.float32, CPU, False)
    lengths = x["lengths"].tolist()
    assert sum(lengths) < x["query"][..., 0].numel()
    fresh = case.fresh(case.ours, x)
    with torch.profiler.profile() as found:
        loss, *packed = case.run(case.ours, fresh)
    ran = {event.key for event in found.key_averages()}
    assert not ran & {"aten::index", "aten::index_select", "aten::index_put_", "aten::nonzero"}
    assert [gradient.shape for gradient in packed] == 3 * [(sum(lengths), SIZE.hidden)]
    _, *padded = case.view(x, (loss, *packed))
    for gradient, documents in zip(packed, padded, strict=True):
        rows = [rows[:n] for rows, n in zip(documents, lengths, strict=True)]
        assert torch.equal(torch.cat(rows), gradient)
        assert documents.count_nonzero() == gradient.count_nonzero()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case.variant}")
def test_every_case_is_right_in_every_dtype(case: Case, dtype: str) -> None:
    if DTYPES[dtype] not in case.dtypes:
        with pytest.raises(TypeError, match="underflow"):
            Check(case, case.draw(SIZE, DTYPES[dtype], CPU, False), DTYPES[dtype]).wrong()
        return
    check = Check(case, case.draw(SIZE, DTYPES[dtype], CPU, False), DTYPES[dtype])
    assert check.wrong() is None
    assert all(error < 0.01 for error in check.error.values())


def _truncated(x: Tensors) -> Tensor:
    return topk_kl(x["logits"], x["ids"], x["logprobs"], tail="truncate")


def _value_alone(x: Tensors) -> Tensor:
    """The loss with four times its gradient: a factor T^2 on one of the two only."""
    loss: Tensor = case_of("topk_kl", "T=1").ours(x)  # type: ignore[assignment]  # one loss
    return loss.detach() + 4 * (loss - loss.detach())


class _Sparse(torch.autograd.Function):
    """Drops the gradient outside the support, where each of its entries is small."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        kept = torch.zeros_like(grads[0], dtype=torch.bool).scatter(1, ctx.saved_tensors[0], True)
        return grads[0] * kept, None


def _support_alone(x: Tensors) -> Tensor:
    logits = _Sparse.apply(x["logits"], x["ids64"])  # type: ignore[no-untyped-call]  # so in torch
    loss: Tensor = case_of("topk_kl", "T=1").ours({**x, "logits": logits})  # type: ignore[assignment]
    return loss


def _first_rows(x: Tensors) -> Tensor:
    """Right on few rows: from the sixteenth on a row is taken for the one before it."""
    some = {**x, "logits": torch.cat([x["logits"][:16], x["logits"][15:-1]])}
    loss: Tensor = case_of("topk_kl", "T=1").ours(some if len(x["logits"]) > 16 else x)  # type: ignore[assignment]
    return loss


@pytest.mark.parametrize(
    ("formula", "off"),
    [
        (_truncated, {"loss", "logits"}),
        (_value_alone, {"logits"}),
        (_support_alone, {"logits"}),
        (_first_rows, {"logits"}),
    ],
    ids=["another loss", "gradient too large", "gradient sparse", "wrong beyond 16 rows"],
)
def test_a_wrong_op_is_named_and_not_timed(formula: Formula, off: set[str]) -> None:
    wrong = dataclasses.replace(case_of("topk_kl", "T=1"), ours=formula)
    found = bench_kernels(Grid(**TINY, rivals=(), cases=(wrong,)), CPU)
    assert found["rows"] == []
    (refused,) = found["refused"]
    assert (refused["op"], refused["dtype"]) == ("topk_kl", "fp32")
    assert set(refused["wrong"]) == off
    assert "seconds" not in refused


def test_rivals_that_are_wrong_or_fail_are_said_to_be_and_ours_is_timed() -> None:
    def fails(x: Tensors) -> Tensor:
        raise RuntimeError("no such kernel\nand a second line")

    rivals = (
        Rival(name="eager", formula=_truncated),
        Rival(name="TRL", formula=fails),
        Rival(name="axolotl", formula=_truncated, missing=lambda device: "not here"),
    )
    case = dataclasses.replace(case_of("topk_kl", "T=1"), rivals=rivals)
    (row,) = bench_kernels(Grid(**TINY, rivals=PLAIN, cases=(case,)), CPU)["rows"]
    assert set(row["rivals"]["eager"]["wrong"]) == {"loss", "logits"}
    assert row["rivals"]["TRL"] == {"failed": "RuntimeError: no such kernel"}
    assert row["rivals"]["axolotl"] == {"absent": "not here"}
    assert row["seconds"] > 0


def test_a_compiler_that_takes_no_space_in_a_path_is_said_to_be_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "__file__", "/a folder/torch/__init__.py")
    cases = (case_of("topk_kl", "T=1"),)
    (row,) = bench_kernels(Grid(**TINY, rivals=("torch.compile",), cases=cases), CPU)["rows"]
    why = "its compiler takes no path with a space, and this is one: /a folder/torch"
    assert row["rivals"]["torch.compile"] == {"absent": why}


def test_errors_are_relative_and_see_what_is_missing_among_the_small() -> None:
    want = torch.tensor([[1.0, 1e-3, 1e-3, -math.inf]])
    assert relative_error(want, want) == 0
    assert relative_error(torch.tensor([[1.0, 0.0, 0.0, -math.inf]]), want) > 1e-3
    assert relative_error(torch.tensor([[1.0, math.nan, 1e-3, -math.inf]]), want) == math.inf
    assert relative_error(want[:, :2], want) == math.inf


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ops": ("topk_lk",)}, "did you mean 'topk_kl'"),
        ({"rivals": ("egar",)}, "did you mean 'eager'"),
        ({"dtypes": ("fp61",)}, "unknown dtype"),
        ({"allocators": ("keepin",)}, "did you mean 'keeping'"),
        ({"repeats": 0}, "at least 1"),
        ({"rows": ()}, "at least 1"),
        ({"k": 257, "vocab": (257,)}, "below the vocabulary, 257"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Grid(**options)


def test_grids_of_cpu_and_gpu_differ_in_size_and_dtype() -> None:
    assert default_grid(CPU, rows=None) == Grid()
    gpu = default_grid(torch.device("cuda"), k=16)
    assert (gpu.rows, gpu.vocab, gpu.dtypes, gpu.k) == ((8192,), (30522, 128256), ("bf16",), 16)
    sizes = {(case.op, size.vocab, size.hidden) for case, size, _ in gpu.work()}
    assert ("topk_kl", 128256, 768) in sizes
    assert ("hidden_mse", 128256, 768) not in sizes
    both = default_grid(CPU, rows=(16, 32), ops=("hidden_mse",))
    assert {size.rows for _, size, _ in both.work()} == {16, 32}


def test_the_peak_of_a_call_is_what_it_holds() -> None:
    watch = Stopwatch(CPU)
    peak = watch.peak_bytes(lambda: torch.ones(1 << 24))
    assert peak is None or 0.9 * 2**26 < peak < 1.3 * 2**26


def test_contenders_take_turns_after_each_of_the_others_and_only_their_calls_are_timed() -> None:
    """In one order, one would always find the caches as the same other one left them."""
    order: list[str] = []

    def contender(name: str) -> Contender:
        def prepare() -> Callable[[], None]:
            order.append(f"prepare {name}")
            return lambda: order.append(name)

        return Contender(prepare)

    seconds = interleave(Stopwatch(CPU), {n: contender(n) for n in "abc"}, 20, warm_up=1)
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 20)
    prepared, called = order[::2], order[1::2]
    assert prepared == [f"prepare {name}" for name in called]
    assert all(sorted(called[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(called), 3))
    assert set(itertools.pairwise(called)) >= set(itertools.permutations("abc", 2))


def test_limits_move_the_bytes_and_do_the_operations_they_say() -> None:
    copied = copy_probe(1000, CPU).prepare()()
    assert copied.nbytes == 500
    contender, flops = gemm_probe(torch.float32, CPU)
    assert flops == 2 * contender.prepare()().shape[0] ** 3


@pytest.mark.slow
def test_a_report_comes_back_from_its_file(report: dict[str, Any], tmp_path: Path) -> None:
    path = save_report(tmp_path / "new" / "kernels.json", report)
    again = load_report(path, "kernels")
    assert again == json.loads(json.dumps(report))
    assert again["machine"] == json.loads(json.dumps(machine()))
    with pytest.raises(MismatchError, match="benchmark 'kernels', expected 'store'"):
        load_report(path, "store")
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="names no benchmark"):
        load_report(path, "kernels")


@pytest.mark.slow
def test_reports_of_format_1_can_be_compared_with_and_later_ones_cannot(
    report: dict[str, Any], tmp_path: Path
) -> None:
    old: dict[str, Any] = {**report, "format": 1}
    path = save_report(tmp_path / "old.json", old)
    assert regressions(load_report(path, "kernels"), report) == []
    save_report(path, {**old, "format": 3})
    with pytest.raises(MismatchError, match="format 3, expected 1 or 2"):
        load_report(path, "kernels")


@pytest.mark.slow
def test_a_plot_has_a_row_a_case_and_a_panel_a_message(
    report: dict[str, Any], tmp_path: Path
) -> None:
    with_floors = json.loads(json.dumps(report))
    predict(with_floors, list(CARDS))
    assert len(cases(with_floors)) == len(CASES)
    assert len(messages(report)) == 3
    assert len(messages(with_floors)) == 5
    image = draw(tmp_path / "kernels.png", with_floors).read_bytes()
    assert image.startswith(b"\x89PNG")
    assert int.from_bytes(image[16:20], "big") == 1245  # one and a half of what a README is wide


def test_a_floor_is_the_slower_of_a_copy_and_a_product() -> None:
    row = {"dtype": "bf16", "bytes": 3.02e12, "flops": 78.5e12}
    assert floor(row, CARDS["H100"]) == {"seconds": 1.0, "bound": "copy"}
    found = floor({**row, "flops": 3 * 785e12}, CARDS["H100"])
    assert found == {"seconds": 3.0, "bound": "gemm bf16"}
    for card in CARDS.values():
        assert card.products.keys() == DTYPES.keys()


def doctored(report: dict[str, Any], op: str, figure: str, factor: float) -> dict[str, Any]:
    """A copy in which a figure of every row of `op` is multiplied."""
    copy: dict[str, Any] = json.loads(json.dumps(report))
    for row in copy["rows"]:
        if row["op"] == op:
            row[figure] *= factor
    return copy


@pytest.mark.slow
def test_what_got_slower_or_larger_is_a_regression_and_what_got_better_is_not(
    report: dict[str, Any],
) -> None:
    assert regressions(report, report) == []
    for factor, expected in ((0.5, {"quantize_rows"}), (0.95, set()), (2.0, set())):
        old = doctored(report, "quantize_rows", "seconds", factor)
        found = regressions(old, report)
        assert {change.row.split()[0] for change in found} == expected
        assert all(change.ratio == pytest.approx(2) for change in found)
    higher = {**report, "better": {"share_of_limit": "higher"}}
    old = doctored(higher, "topk_encode", "share_of_limit", 3.0)
    assert [change.figure for change in regressions(old, higher)] == ["share_of_limit"]
    with pytest.raises(MismatchError, match="no row in common"):
        regressions({**report, "rows": []}, report)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `kdcache bench kernels` at a tiny size; returns exit code, stdout and stderr."""
    from kdcache_cli.main import main

    def call(*more: object) -> tuple[int, str, str]:
        tiny = ["--rows", 19, "--vocab", 257, "--k", 8, "--repeats", 1, "--rival", "eager"]
        tiny += ["--allocator", "default"]
        command = ["bench", "kernels", "--device", "cpu", "--quiet", *tiny, *more]
        return (main([str(word) for word in command]), *capsys.readouterr())

    return call


def test_the_command_prints_writes_and_compares(run: Run, tmp_path: Path) -> None:
    asked = ["--op", "topk_kl", "--dtype", "fp32,bf16", "--out", tmp_path]
    code, out, err = run(*asked)
    assert (code, err) == (0, "")
    for text in ("topk_kl inplace bf16", "of limit", "best rival", "eager", "Goals, "):
        assert text in out
    assert (tmp_path / "kernels.png").stat().st_size > 1000
    assert not (tmp_path / "kernels.part.jsonl").exists()
    old = load_report(tmp_path / "kernels.json", "kernels")
    assert len(old["rows"]) == 12
    assert "Predicted" not in out
    path = save_report(tmp_path / "fast.json", doctored(old, "topk_kl", "seconds", 1e-6))
    code, out, _ = run("--op", "topk_kl", "--compare", path)
    assert code == 1
    assert "topk_kl T=2 fp32 cpu 19 257 8" in out
    assert "seconds" in out
    path = save_report(tmp_path / "slow.json", doctored(old, "topk_kl", "seconds", 1e6))
    code, out, err = run("--op", "topk_kl", "--compare", path, "--tolerance", 1000, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["regressions"] == []


def test_a_saved_report_is_shown_on_a_page_of_100_columns_with_floors_of_other_cards(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from kdcache_cli.main import main

    saved = Path(__file__).parents[1] / "benchmarks" / "results" / "kernels_cpu.json"
    cards = ["--limit-from", "H100", "--limit-from", "H200"]
    stopped = tmp_path / "kernels.part.jsonl"
    stopped.write_text("rows of a run that was stopped\n")
    assert main(["bench", "kernels", "--read", str(saved), *cards, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert stopped.exists()
    assert max(map(len, out.splitlines())) <= 100
    for name in {f"{row['op']} {row['variant']}".strip() for row in result(saved)["rows"]}:
        assert f" {name} " in out, "a name is broken over lines"
    assert "Predicted, not measured" in out
    written = result(tmp_path / "kernels.json")
    assert [card["name"] for card in written["predicted"]] == ["H100", "H200"]
    assert all(set(row["predicted"]) == {"H100", "H200"} for row in written["rows"])
    assert regressions(result(saved), written) == []


def result(path: Path) -> dict[str, Any]:
    return load_report(path, "kernels")


def test_the_command_refuses_a_wrong_kernel(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(case_of("topk_kl", "T=1"), ours=_truncated)
    monkeypatch.setattr(kernels_grid, "CASES", (wrong, case_of("quantize_rows", "")))
    code, out, err = run()
    assert code == 1
    assert err.startswith("error: topk_kl T=1 fp32 N=19 V=257 K=8 is wrong and was not timed")
    assert "allowed" in err
    assert "topk_kl" not in out
    assert "quantize_rows" in out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--op", "topk"], "unknown op 'topk'; did you mean 'topk_kl' or 'topk_encode'?"),
        (["--vocab", "30k"], "--vocab takes numbers as in 30522,128256; got '30k'"),
        (["--dtype", "fp61"], "did you mean 'fp16'?"),
        (["--limit-from", "B200"], "unknown card 'B200'"),
        (["--limit-from", "H1"], "(known: H100, H200)"),
        (
            ["--read", "old.json"],
            "--k, --repeats, --rival, --allocator beside it",
        ),
        (["--compare", "/nowhere/old.json"], "is not a readable report"),
        (["--device", "cuda:x"], "unknown device"),
    ],
)
def test_misuse_is_told_before_anything_runs(run: Run, more: list[str], says: str) -> None:
    code, out, err = run(*more)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_the_tables_name_everything_once() -> None:
    names = [(case.op, case.variant) for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.op for case in CASES} == set(OPS)
    assert {"eager", "torch.compile", "TRL", "axolotl"} < set(RIVALS)
    assert NOISE == TOLERANCE
