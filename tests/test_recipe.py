"""Recipes: what ships, overrides, files, and messages that name the field and the way out."""

from dataclasses import replace

import pytest

from kdcache.errors import ConfigError
from kdcache.losses.layer_maps import layer_pairs
from kdcache.signals import ModelSizes
from kdcache.tasks import as_task
from kdcache.training.arguments import meant_fields
from kdcache.training.recipe import load_recipe, shipped_recipes
from kdcache.training.wanted_signals import signals_for

SHIPPED = [
    "ad-kd",
    "alp-kd",
    "annealing-kd",
    "at",
    "backward-kd",
    "bert-emd",
    "bss",
    "causal-kd",
    "cc",
    "crd",
    "distilbert",
    "dml",
    "finetune",
    "fitnet",
    "fsp",
    "hidden",
    "kd",
    "kd-mse",
    "l2a",
    "meta-kd",
    "minilm",
    "minilmv2",
    "mixed-vocab",
    "mkd",
    "mlkd-bert",
    "mlm-kd",
    "mobilebert",
    "mt-bert",
    "mutual",
    "nst",
    "one",
    "pea-kd",
    "pkd-last",
    "pkd-skip",
    "pkt",
    "rkd",
    "rl-kd",
    "simkd",
    "skdbert",
    "sp",
    "text-smoothing",
    "tinybert",
    "tinybert-general",
    "vid",
]


def test_the_promised_recipes_ship():
    assert shipped_recipes() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_says_what_it_is_and_where_from(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert "arXiv:" in recipe.paper or "doi:" in recipe.paper
    for stage in recipe.in_stages():
        assert any(loss.weight > 0 for loss in stage.losses.values())
    assert recipe.training["learning_rate"] > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_written_recipe_reads_back_equal(name, tmp_path):
    stage = "".join(f"stages.{stage.name}." for stage in load_recipe(name).stages[:1])
    override = f"{stage}losses.hidden.layer_map=[[1, 2], [2, 4]]"
    recipe = load_recipe(name, [override, "data.window=7"])
    (tmp_path / "again.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_text_with_quotes_and_tables_in_training_read_back(tmp_path):
    recipe = load_recipe(
        "kd", ['name="a \\"b\\" ü"', "training.lr_scheduler_kwargs={num_cycles = 2}"]
    )
    (tmp_path / "again.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert recipe.training["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert load_recipe(tmp_path / "again.toml") == recipe


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("losses.kl.temperature=4", ("losses", "kl", "temperature"), 4),
        ("training.learning_rate = 1e-4", ("training", "learning_rate"), 1e-4),
        ("training.optim=adamw_torch", ("training", "optim"), "adamw_torch"),
        ("training.report_to=['a', 'b']", ("training", "report_to"), ["a", "b"]),
        ("data.group_by_length=False", ("data", "group_by_length"), False),
        ("losses.hidden.layer_map=1:2,2:4", ("losses", "hidden", "layer_map"), "1:2,2:4"),
        ("student.init_from_teacher=2-4", ("student", "init_from_teacher"), [2, 4]),
        ("student.checkpoint=2024-01-01", ("student", "checkpoint"), "2024-01-01"),
    ],
)
def test_an_override_sets_its_field(override, path, value):
    found = load_recipe("kd", [override]).to_json()
    for key in path:
        found = found[key]
    assert found == value


def test_an_override_of_the_student_replaces_it():
    recipe = load_recipe("kd", ["student.checkpoint=a", "student.config=b"])
    assert recipe.student == {"config": "b"}


def test_overrides_apply_to_a_recipe_object_and_leave_it_as_it_is():
    recipe = load_recipe("kd")
    assert load_recipe(recipe, ["losses.kl.weight=3"]).losses["kl"].weight == 3
    assert recipe.losses["kl"].weight == 1
    assert load_recipe(recipe) == recipe


def test_two_losses_of_a_kind_have_names_of_their_own(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(
        "[losses.embeddings]\nkind = 'hidden'\nlayer_map = '0:0'\n"
        "[losses.top]\nkind = 'hidden'\nlayer_map = '2:4'\n",
        encoding="utf-8",
    )
    recipe = load_recipe(path)
    assert recipe.name == "two"
    assert [loss.kind for loss in recipe.losses.values()] == ["hidden", "hidden"]
    assert load_recipe(recipe) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1", "did you mean 'training.learning_rate'"),
        ("lr=1", "did you mean 'training.learning_rate'"),
        ("train.lr=1", "did you mean 'training.learning_rate'"),
        ("fp16=true", "did you mean 'training.fp16'"),
        ("weight=1", r"did you mean 'losses.kl.weight' or 'losses.hard.weight'\?"),
        ("zzz=1", r"unknown recipe field 'zzz' \(fields are"),
        ("temperature=4", "did you mean 'losses.kl.temperature'"),
        ("losses.kl.temprature=3", "did you mean 'temperature'"),
        ("losses.hiden.weight=1", "did you mean 'hidden'"),
        ("losses.hidden.layer_map=skp", "did you mean 'skip'"),
        ("losses.hidden.positions=al", "did you mean 'all'"),
        ("losses.kl.tail=buket", "did you mean 'bucket'"),
        ("losses.kl.reduction=rows", "did you mean 'row'"),
        ("data.windw=3", "did you mean 'window'"),
        ("student.chckpoint=x", "did you mean 'checkpoint'"),
        ("losses.kl.temperature=four", "must be a number; got 'four'"),
        ("losses.kl.temperature=0", "must be more than 0"),
        ("losses.kl.weight=-1", "must be 0 or more"),
        ("losses.kl.weight=nan", "must be 0 or more and finite"),
        ("losses.kl.t_squared=1", "must be true or false"),
        ("losses.hidden.layer_map=3", "must be a text or a list"),
        ("losses.hidden.layer_map=[1, 2]", "pairs of a student and a teacher layer"),
        ("losses.hidden.pads=count", "pads=count is for positions=all"),
        ("data.window=0", "must be 1 or more"),
        ("data.window=2.5", "must be a whole number"),
        ("student.init_from_teacher=a-b", "list of teacher layers"),
        ("training", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("name.first=x", "name of the recipe is no table"),
        ("losses=3", r"\[losses\] of a recipe is a table"),
        ("losses.kl=3", "a loss is a table"),
    ],
)
def test_a_wrong_override_is_refused_with_the_way_out(override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("kd", [override], meant_fields())


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("pkd-skp", "'pkd-skip'"),
        ("pkd", "'pkd-last' or 'pkd-skip'"),
        ("PKD_last", "'pkd-last'"),
        ("skip", "'pkd-skip'"),
    ],
)
def test_an_unknown_recipe_names_those_it_may_be(name, suggested):
    with pytest.raises(ConfigError, match=rf"'{name}'; did you mean {suggested}\? \(`kdcache rec"):
        load_recipe(name)


def test_a_missing_file_lists_what_ships(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe file .*none\.toml; shipped recipes: ad-kd"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "is not TOML"),
        ("nam = 'x'", "did you mean 'name'"),
        ("[training]\nseed = 1", "has no loss"),
        ("losses = 1", r"\[losses\] of a recipe is a table"),
        ("[losses.'a b']\nkind = 'kl'", "letters, digits"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_repr_tells_losses_and_settings():
    assert "losses 1 kl, 0 hard" in repr(load_recipe("kd"))
    assert "learning_rate=5e-05" in repr(load_recipe("kd"))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "pairs"),
    [
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("skip", 3, 12, [(1, 4), (2, 8)]),
        ("last", 6, 12, [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        ("first", 4, 6, [(1, 1), (2, 2), (3, 3)]),
        ("uniform", 4, 12, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("uniform", 6, 6, [(i, i) for i in range(7)]),
        ("blocks", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("1:2, 2:4", 2, 4, [(1, 2), (2, 4)]),
        ([[0, 0], [2, 4]], 2, 4, [(0, 0), (2, 4)]),
    ],
)
def test_layer_maps_are_those_of_the_papers(name, student, teacher, pairs):
    assert layer_pairs(name, student, teacher) == tuple(pairs)


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "message"),
    [
        ("skip", 4, 6, "they have 6 and 4: give pairs such as '1:2,2:3,3:4'"),
        ("uniform", 5, 12, "multiple of the student's"),
        ("skip", 1, 6, "is empty for a student of 1 layer: .* pairs such as '1:6'"),
        ("last", 1, 6, "is empty"),
        ("last", 8, 6, "needs teacher layer -1"),
        ("1:7", 2, 6, r"needs teacher layer 7; the teacher has layers 0 .* to 6"),
        ("3:6", 2, 6, "needs student layer 3"),
        ("1:2;2:4", 2, 4, "pairs of a student and a teacher layer"),
        ([[1, True]], 2, 4, "pairs of a student and a teacher layer"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(layer_map, student, teacher, message):
    with pytest.raises(ConfigError, match=message):
        layer_pairs(layer_map, student, teacher)


TEACHER = ModelSizes(outputs=3, hidden=384, layers=6, heads=12, key_heads=12, head_width=32)
NEEDS = {
    "labels alone": set(),
    "soft labels": {"logits"},
    "soft labels at points": {"logits"},
    "a masked language model's words": set(),
    "pooled features": {"pooled"},
    "hidden states of documents": {"hidden cls"},
    "hidden states of tokens": {"hidden all"},
    "attention": {"attention"},
    "attention and hidden states": {"attention", "hidden all"},
    "attributions": {"attribution"},
}
"""What is kept, beside soft labels, for a recipe that says what it needs."""


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_says_what_a_cache_has_to_hold_for_it(name):
    recipe, student = load_recipe(name), replace(TEACHER, layers=3)
    task = as_task("masked-lm" if name == "distilbert" else "text-classification")
    texts = signals_for([recipe], task, student, TEACHER, projected=True)
    places = [(text.partition(":")[0], text.partition("positions=")[2]) for text in texts]
    kept = {" ".join(filter(None, place)) for place in places}
    assert kept - {"logits"} == NEEDS[recipe.needs] - {"logits"}
    assert ("logits" in NEEDS[recipe.needs]) <= ("logits" in kept)
