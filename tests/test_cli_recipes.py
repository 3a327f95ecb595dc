"""`precsim recipes --measure`: what training under each recipe came to, and its bytes."""

import json


def test_measured_numbers_for_a_program(call):
    words = ("recipes", "fp32", "half", "--measure", "--steps", "2", "--json")
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["fp32", "half"]
    assert found["fp32"]["summary"]["steps"] == 2
    assert found["fp32"]["summary"]["flushed"] < found["half"]["summary"]["flushed"]
    assert 0 < found["fp32"]["gradient_error"] < 1e-5 < found["half"]["gradient_error"]
    assert found["half"]["memory"]["total"] < found["fp32"]["memory"]["total"]


def test_measured_table(call):
    words = ("recipes", "torch_amp_bf16", "--measure", "--steps", "1")
    code, out, err = call(*words, columns=160)
    assert code == 0
    assert "micro_batches = 4096" in err
    (line,) = (line for line in out.splitlines() if line.startswith("torch_amp_bf16"))
    assert "bf16" in line.split("  ")[-1]
    assert "Memory is a model" in " ".join(out.split())


def test_wrong_names_and_words_are_told(call):
    code, _, err = call("recipes", "hlf", "--measure")
    assert (code, "did you mean half" in err) == (2, True)
    code, _, err = call("recipes", "half")
    assert (code, "--measure" in err) == (2, True)
    code, _, err = call("recipes", "--measure", "--steps", "0")
    assert (code, "at least 1" in err) == (2, True)
    code, _, err = call("recipes", "--measure", "--text", "no/such/file")
    assert (code, "no/such/file" in err) == (2, True)
