"""What a run is made of: read from TOML and --set, refused with one sentence where it cannot be."""

import pytest

from precsim.runs.config import ConfigError, TrainConfig, parse_assignments, read


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"lr": float("nan")}, "lr must be a finite number >= 0; got nan"),
        ({"lr": float("inf")}, "lr must be a finite number >= 0; got inf"),
        ({"lr": -0.1}, "lr must be a finite number >= 0; got -0.1"),
        ({"lr": "fast"}, "lr must be a number; got 'fast'"),
        ({"lr": True}, "lr must be a number; got True"),
        ({"lr": 10**400}, "lr must be a finite number; got an integer of 1329 bits"),
        ({"beta1": 1.0}, "beta1 must be below 1; got 1.0"),
        ({"beta2": -0.5}, "beta2 must be a finite number >= 0"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": 10.0}, "steps must be a whole number; got 10.0"),
        ({"steps": True}, "steps must be a whole number; got True"),
        ({"micro_batches": 0}, "micro_batches must be at least 1; got 0"),
        ({"accumulation": -1}, "accumulation must be at least 1; got -1"),
        ({"tied": 1}, "tied must be true or false; got 1"),
        ({"policy": 16}, "policy must be text; got 16"),
        ({"policy": "fp61"}, "unknown format 'fp61': did you mean .*fp16"),
        ({"policy": "weights=fp16 weight=fp16"}, "unknown policy entry 'weight=fp16'"),
        (
            {"policy": "rule=op=matmull,output=fp16"},
            "op=matmull matches no op: did you mean matmul",
        ),
        (
            {"policy": "rule=op=Q*,output=fp16"},
            "op=Q\\* matches no op: expected one of .*softmax",
        ),
        ({"heads": 3}, "heads must divide the width: 64 is not a multiple of 3"),
        ({"layers": 0}, "layers must be a whole number from 1 on; got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"optimizer": "adam"}, "optimizer must be one of .*adamw.*; got 'adam'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant; got 'linear'"),
        ({"loss_scale": "auto"}, "loss scale 'auto': expected"),
        ({"loss_scale": "static:0"}, "loss scale must be a positive number; got 0"),
        ({"step": 3}, "unknown configuration entry 'step': did you mean steps"),
        ({"zzz": 3}, "unknown configuration entry 'zzz': expected one of data"),
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_gets_one_sentence(entries, message):
    with pytest.raises(ConfigError, match=message) as error:
        TrainConfig().change(**entries)
    assert "\n" not in str(error.value)


def test_whole_numbers_are_numbers_and_policies_are_spelled_in_full():
    config = TrainConfig(lr=1, policy="half")
    assert (config.lr, type(config.lr)) == (1.0, float)
    assert config.policy.startswith("activations=fp16 ")
    assert TrainConfig(**config.to_dict()) == config
    assert TrainConfig(policy="rule=op=matmul,output=fp16 rule=op=layer_norm*,output=fp32")


def test_a_toml_file_gives_entries(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        '# a run\nsteps = 7\nlr = 1e-3\npolicy = "bf16"\ntied = true\n', encoding="utf-8"
    )
    entries = read(path)
    assert entries == {"steps": 7, "lr": 1e-3, "policy": "bf16", "tied": True}
    assert TrainConfig().change(**entries).steps == 7
    assert read(str(path)) == entries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps = \n", "run.toml is not valid TOML: .*line 1"),
        (b"steps = 7\nsteps = 8\n", "is not valid TOML"),
        (b"steps = " + b"9" * 5000, "is not valid TOML"),
        ("name = 'ü'".encode("latin-1"), r"run.toml is not UTF-8 text \(byte 8\)"),
        (b"\xff\xfes\x00t\x00", r"is not UTF-8 text \(byte 0\)"),
        (
            b"steps = 7\n[model]\nlayers = 2\n",
            r"the table \[model\] is not expected; entries are fl",
        ),
        (b"model.layers = 2\n", r"the table \[model\] is not expected"),
    ],
)
def test_a_toml_file_that_cannot_be_read_says_why(tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_a_missing_file_and_a_directory_say_so(tmp_path):
    with pytest.raises(
        ConfigError, match=r"cannot read .*none.toml: No such file .*expected a TOML"
    ):
        read(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"cannot read .*: .*; expected a TOML file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("pair", "entry"),
    [
        ("steps=100", ("steps", 100)),
        ("lr=1e-3", ("lr", 1e-3)),
        ("tied=true", ("tied", True)),
        ("policy=bf16", ("policy", "bf16")),
        ("policy=weights=fp16 gradients=fp16", ("policy", "weights=fp16 gradients=fp16")),
        ('data="123"', ("data", "123")),
        (" data = ./a file.txt", ("data", "./a file.txt")),
        ("policy=", ("policy", "")),
        ("steps=" + "9" * 5000, ("steps", "9" * 5000)),
    ],
    ids=range(9),
)
def test_an_assignment_is_toml_where_it_can_be_and_text_else(pair, entry):
    assert parse_assignments([pair]) == dict([entry])


def test_an_assignment_without_a_value_is_refused():
    with pytest.raises(
        ConfigError, match=r"--set 'steps': expected key=value, e.g. --set steps=100"
    ):
        parse_assignments(["lr=1", "steps"])
    assert parse_assignments([]) == {}
    assert parse_assignments(["a=1", "a=2", "b=3"]) == {"a": 2, "b": 3}
