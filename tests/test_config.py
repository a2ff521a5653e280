import dataclasses
import json
import math
import types
import typing

import pytest
import yaml
from hypothesis import given, settings, strategies as st

import patch_diffusion as pd
from patch_diffusion.cli.options import given_options
from patch_diffusion.config import Config, Patches
from patch_diffusion.config_dict import MAY_CHANGE, changed_options, flat_options, from_dict, read_yaml, to_dict
from patch_diffusion.data.augment import Augment
from patch_diffusion.limits import check_numbers
from refusal import refused


@pytest.mark.parametrize("name", pd.PRESETS)
def test_a_config_survives_json(name):
    config = pd.PRESETS[name]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_every_option_is_documented():
    """The text below each field is what --help shows."""
    import ast
    import inspect

    from patch_diffusion import config

    tree = ast.parse(inspect.getsource(config))
    for group in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for node, following in zip(group.body, [*group.body[1:], None], strict=True):
            name = ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else ""
            if name and not hasattr(config, name.capitalize()):  # groups have theirs
                assert isinstance(following, ast.Expr), f"{group.name}.{name}"


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"batsh": 3}, "batsh", "the config: there is no option 'batsh'; did you mean 'batch'?"),
        ({"patches": {"hole": 0.3}}, "patches.hole", "there is no option 'patches.hole'; did you mean 'whole'?"),
        ({"patches": 3}, "patches", "patches is a group of options, not 3"),
        ({"batch": "many"}, "batch", "batch is 'many'"),
        ({"patches": {"kind": "x"}}, "patches.kind", "patches.kind is 'x'"),
        ({"patches": {"sizes": {"1/2": "x"}}}, "patches.sizes", "patches.sizes.1/2 is 'x'"),
        ({"network": {"multipliers": [1, "a"]}}, "network.multipliers", "network.multipliers.1 is 'a'"),
    ],
)
def test_wrong_options_are_named(options, option, message):
    with refused(option, message):
        from_dict(options)


def test_yaml_lies_over_a_base(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("batch: 7\npatches:\n  sizes: {1/3: 1.0}\n")
    config = read_yaml(file, base=dataclasses.replace(Config(), seed=5))
    assert (config.batch, config.seed, config.patches) == (7, 5, Patches(sizes={"1/3": 1.0}))
    file.write_text("")
    assert read_yaml(file) == Config()
    for content, message in (
        ("[1]", "must hold options by name"),
        ("a: [", "is not valid YAML"),
        ("x: 1", "options.yaml"),
    ):
        file.write_text(content)
        with pytest.raises(pd.InputError, match=message):
            read_yaml(file)
    with pytest.raises(pd.InputError, match="cannot read the config file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_changed_options():
    config = Config()
    free = dataclasses.replace(config, minutes=3, samples=1, engine=dataclasses.replace(config.engine, threads=1))
    assert changed_options(config, free) == []
    cached = dataclasses.replace(config, data=dataclasses.replace(config.data, cache="disk", fit="stretch"))
    assert changed_options(config, cached) == ["data.fit"]
    bound = dataclasses.replace(config, batch=1, patches=Patches(whole=0.1))
    assert changed_options(config, bound) == ["batch", "patches.whole"]
    groups = {name.partition(".")[0] for name in MAY_CHANGE}
    assert {field.name for field in dataclasses.fields(Config)} > groups


def values_of(kind):
    """Values of a type that a config has."""
    origin, given_types = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return values_of(given_types[0])
    if origin is typing.Literal:
        return st.sampled_from(given_types)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, given_types))
    if origin is tuple and given_types[-1] is ...:
        return st.lists(values_of(given_types[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, given_types))
    if origin is dict:
        return st.dictionaries(*map(values_of, given_types), max_size=3)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{field.name: values_of(hints[field.name]) for field in dataclasses.fields(kind)})
    plain = {
        float: st.floats(allow_nan=False, allow_infinity=False),
        int: st.integers(-(2**63), 2**63 - 1),
        str: st.text(max_size=6),
        typing.Any: st.one_of(st.booleans(), st.text(max_size=6), st.lists(st.integers(0, 9), max_size=2)),
    }
    return plain[kind] if kind in plain else st.from_type(kind)


@given(values_of(Config))
def test_any_config_survives_json_and_yaml(tmp_path_factory, config):
    stored = to_dict(config)
    assert from_dict(json.loads(json.dumps(stored))) == config
    file = tmp_path_factory.getbasetemp() / "any config.yaml"
    file.write_text(yaml.safe_dump(stored), encoding="utf-8")
    assert read_yaml(file) == config
    assert changed_options(config, config) == []


OPTIONS = sorted(flat_options(Config()))


@given(st.sampled_from(OPTIONS), st.data())
def test_an_unknown_name_is_an_error_with_the_nearest_one(option, data):
    *groups, name = option.split(".")
    place = data.draw(st.integers(0, len(name)))
    wrong = name[:place] + data.draw(st.sampled_from("xyz")) + name[place:]
    options = {wrong: 1}
    for group in reversed(groups):
        options = {group: options}
    with pytest.raises(pd.InputError) as refused:
        from_dict(options)
    assert f"there is no option '{'.'.join([*groups, wrong])}'" in str(refused.value)
    assert f"'{name}'" in str(refused.value) or len(name) < 3


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([math.nan, math.inf, -1, 0, 2**63, 1e308, "", [], {}, "1/0", "1/2", "auto", [[]], {"1/2": None}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(OPTIONS + sorted({name.partition(".")[0] for name in OPTIONS})), ANYTHING)
@settings(max_examples=300)
def test_a_value_of_any_kind_is_taken_or_an_error_of_input(option, value):
    """In the config, and in the objects that act by its options."""
    options = value
    for group in reversed(option.split(".")):
        options = {group: options}
    try:
        config = from_dict(options)
        check_numbers(config)
        schedule = pd.PatchSchedule.of(config.patches, seed=config.seed)
        schedule.size_at(5, (32, 48), 0.5)
        levels = pd.NoiseLevels.of(config.noise)
        assert levels.draw(2).shape == (2,)
        Augment.of(config.data.augment)
    except pd.InputError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("batch: " + "9" * 5000, "is not valid YAML"),
        ("batch: " + "[" * 5000, "line 1 is nested too deeply"),
        ("watch: {times: !!timestamp x}", "line 1 has a tag"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nbatch: *b\n", "line 2 has an alias"),
        ("batch: 1\n" * 10_000, "has more than 50,000 bytes"),
        ("batch: " + "x" * 5000, "batch is 'xxxxx"),
        ("patches: " + "x" * 5000, "patches is a group of options, not 'xxx"),
        ("[1, 2]", "must hold options by name"),
        ("caf\xe9: 1", "there is no option"),
    ],
)
def test_yaml_is_bounded(tmp_path, content, told):
    file = tmp_path / "options.yaml"
    file.write_text(content, encoding="utf-8")
    for read in (read_yaml, lambda path: given_options([], path)):
        try:
            read(file)
        except pd.InputError as error:
            assert told in str(error) and str(file) in str(error) and len(str(error)) < 500
        else:
            assert read is not read_yaml


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"network": {"width": 10**7}}, "network.width"),
        ({"network": {"multipliers": [1] * 13}}, "network.multipliers"),
        ({"network": {"multipliers": [1] * 5000}}, "network.multipliers"),
        ({"network": {"blocks": 10**6}}, "network.blocks"),
        ({"data": {"resolution": [8, 10**9]}}, "data.resolution"),
        ({"engine": {"processes": 10**6}}, "engine.processes"),
        ({"batch": 10**8}, "batch"),
        ({"steps": 10**400}, "steps"),
        ({"minutes": 1e300}, "minutes"),
        ({"noise": {"sigma_data": 1e300}}, "noise.sigma_data"),
        ({"optimizer": {"learning_rate": 1e300}}, "optimizer.learning_rate"),
        ({"log_every": 0}, "log_every"),
        ({"noise": {"mean_data": []}}, "noise.mean_data"),
        ({"noise": {"levels": []}}, "noise.levels"),
    ],
)
def test_numbers_have_limits(options, option):
    config = from_dict(options)
    with refused(option):
        check_numbers(config)


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_is_infinite(option):
    options = math.inf
    for group in reversed(option.split(".")):
        options = {group: options}
    with refused(option):
        from_dict(options)
