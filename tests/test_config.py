import dataclasses
import json

import pytest

import patch_diffusion as pd
from patch_diffusion.config import MAY_CHANGE, Config, Patches, changed_options, from_dict, read_yaml, to_dict
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
            if isinstance(node, ast.AnnAssign) and not hasattr(
                config, node.target.id.capitalize()
            ):  # groups have theirs
                assert isinstance(following, ast.Expr), f"{group.name}.{node.target.id}"


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
