"""Rows about recipes: what each is and asks of a cache, and what it bought."""

from __future__ import annotations

from collections.abc import Iterator

from gain_intervals import told
from loss_map_weight_plot import rows
from page_parts import Json, Row, result

TASKS = {
    "causal-kd": "causal-lm",
    "distilbert": "masked-lm",
    "mlm-kd": "masked-lm",
    "tinybert-general": "masked-lm",
}
"""Recipes of language models; all others are shown with classes."""
BEYOND = {
    "backward-kd": ", and points of `kdcache ascend`",
    "bss": ", and points of `kdcache ascend`",
    "pea-kd": ", of a student of three",
    "text-smoothing": "a masked language model's word probabilities",
}
"""What a recipe asks for that is no signal of its teacher."""
PASSED = {"doi:": "https://doi.org/", "arXiv:": "https://arxiv.org/abs/"}


def recipes_rows() -> Iterator[Row]:
    """Each shipped recipe with the signals of a BERT of six layers for a student of two."""
    from kdcache.signals import ModelSizes
    from kdcache.tasks import as_task
    from kdcache.training.recipe import load_recipe, shipped_recipes
    from kdcache.training.wanted_signals import cut, signals_for

    for name in shipped_recipes():
        recipe, task = load_recipe(name), as_task(TASKS.get(name, "text-classification"))
        outputs = 30522 if name in TASKS else 3
        teacher = ModelSizes(
            outputs=outputs, hidden=384, layers=6, heads=12, key_heads=12, head_width=32
        )
        layers = 3 if recipe.student.get("shared") else 2  # twice two do not go into six
        signals = signals_for([recipe], task, cut(teacher, layers), teacher, projected=True)
        needs = ", ".join(f"`{signal}`" for signal in signals) + BEYOND.get(name, "")
        yield f"`{name}`", recipe.description, needs or "labels alone", _linked(recipe.paper)


def _linked(paper: str) -> str:
    """A paper's words with a link where its number is."""
    for mark, address in PASSED.items():
        before, found, after = paper.partition(mark)
        if found:
            number, _, rest = after.partition(",")
            rest = f",{rest}" if rest else ""
            return f"{before}[{found}{number}]({address}{number}){rest}"
    return paper


ON_SST2 = {
    "methods": "on SST-2, 2 layers of the teacher",
    "methods_transformer": "on SST-2, a new Transformer",
    "methods_new": "on SST-2, a new BiLSTM",
}
"""The students compared, by the result."""
GAINED = (
    "learning rate",
    "bytes a document",
    "a step beside kd's",
    "as without its own, %",
    "dev, %",
    "home, %",
    "home: over finetune, points (95% interval)",
    "home: over kd",
    "away, %",
    "away: over kd",
)


def gained_rows(study: str) -> Iterator[Row]:
    """What each recipe gave, the best at home first."""
    whole = result(study)
    found = whole["recipes"]
    for name in sorted(found, key=lambda name: -float(found[name]["home"]["mean"])):
        row = found[name]
        yield (
            f"`{name}`",
            f"{row['rate']:g}",
            f"{row['bytes_a_document']:,.0f}",
            _number(row["step_of_kd"], 2),
            _number(row["agreement_without"], 1, 100),
            f"{100 * row['dev']['mean']:.1f}",
            _percent(row["home"]),
            _over(row["home_gains"], "finetune"),
            _over(row["home_gains"], "kd"),
            _percent(row["away"]),
            _over(row["away_gains"], "kd"),
        )


MORE = (
    "with more than the corpus",
    "over",
    "documents",
    "learning rate",
    "bytes a document",
    "dev, %",
    "home, %",
    "home: over that, points (95% interval)",
    "away, %",
    "away: over that",
)
BESIDE = {"augmented": ", further texts", "domains": ", three domains"}
"""What rows have beside a recipe, by the end of their names."""


def more_rows() -> Iterator[Row]:
    """What recipes gave with further texts, domains or tasks, over what has them not."""
    for name, row in result("methods")["more"].items():
        over = row["over"]
        yield (
            _called(name),
            _called(over),
            f"{row['documents']:,}",
            f"{row['rate']:g}",
            f"{row['bytes_a_document']:,.0f}",
            f"{100 * row['dev']['mean']:.1f}",
            _percent(row["home"]),
            _over(row["home_gains"], over),
            _percent(row["away"]),
            _over(row["away_gains"], over),
        )


def _called(name: str) -> str:
    recipe, _, beside = name.rpartition("-")
    return f"`{recipe}`{BESIDE[beside]}" if beside in BESIDE else f"`{name}`"


SPOKEN = (
    "of language models",
    "learning rate",
    "bytes a token",
    "a step beside hard labels'",
    "home: nats",
    "tokens right, %",
    "over hard labels, points (95% interval)",
    "away: nats",
    "tokens right away, %",
    "over hard labels, away",
)


def spoken_rows() -> Iterator[Row]:
    """What recipes of language models gave, and what their teachers say."""
    for model in result("language_models")["models"].values():
        yield f"the {model['task']} teacher", "", "", "", *_tokens(model["teacher_scores"])
        for name, row in model["recipes"].items():
            yield (
                f"`{name}`",
                f"{row['rate']:g}",
                f"{row['bytes_a_token']:,.0f}",
                _number(row["step_of_hard"], 2),
                *_tokens(row),
            )


def _tokens(row: Json) -> Iterator[str]:
    for found in (row["home"], row["away"]):
        yield f"{found['nats']['mean']:.2f}"
        yield _percent(found["accuracy"])
        yield told(found["gains"]["accuracy"]) if "gains" in found else ""


SETTINGS = {
    "lighter": "own losses a quarter, points (95% interval)",
    "heavier": "four times",
    "beyond": "the next rate",
    "longer": "twice the steps",
}
"""Columns by the setting."""
ASKED = ("learning rate", "as compared, dev, %", *SETTINGS.values())


def asked_rows(study: str) -> Iterator[Row]:
    """What each recipe scored on dev with other settings."""
    for name, row in sorted(result(study)["recipes"].items()):
        gains = row["gains"]
        told_by = (told(gains[one]) if one in gains else "" for one in SETTINGS)
        yield f"`{name}`", f"{row['rate']:g}", f"{100 * row['dev']:.1f}", *told_by


PLACES = {"mrpc": "MRPC", "banking77": "Banking77", "sst2": "SST-2"}
"""What places are called that have a name."""


def everywhere_head() -> Row:
    """The places that recipes were taken to."""
    return "same answers without its own, %", *(PLACES.get(p, p) for p in _places())


def _places() -> Json:
    """What was found, by place; a place that nobody was at is left out."""
    found = result("everywhere")["places"]
    return {name: place["recipes"] for name, place in found.items() if place["recipes"]}


def everywhere_rows() -> Iterator[Row]:
    """What of a recipe's answers stays without its own, place by place."""
    places = _places()
    for name in sorted({name for place in places.values() for name in place}):
        yield f"`{name}`", *(_kept(place.get(name)) for place in places.values())


def _kept(found: Json | None) -> str:
    """A number; "trains" where nothing else is left to compare with; "" where it is refused."""
    if found is None or "refused" in found:
        return ""
    if not found["same_bits"]:
        return "not resumed alike"
    return _number(found["agreement_without"], 1, 100) or "trains"


def combined_rows() -> Iterator[Row]:
    """What kinds of losses gave on each layer map, with the weights that dev chose."""
    return rows(result("loss_map_weight"))


def _number(found: float | None, digits: int, times: float = 1) -> str:
    return "" if found is None else f"{times * found:.{digits}f}"


def _percent(found: Json) -> str:
    return f"{100 * found['mean']:.1f} ± {100 * found['sd']:.1f}"


def _over(gains: Json, other: str) -> str:
    return told(gains[other]) if other in gains else ""
