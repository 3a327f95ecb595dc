"""Starting from weights: checkpoints and .safetensors files, GPT-2's names, and files that are none of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import precsim as ps
from precsim.cli import main
from precsim.runs.data import load
from precsim.runs.pretrained import WeightsError, load_weights, read_weights, save_weights

CONFIG = ps.TrainConfig(
    data="reverse", layers=2, heads=2, width=8, context=16, batch=2, steps=4, eval_every=4,
    observe="off",
)  # fmt: skip
LETTERS = load("reverse").alphabet
SIZES = CONFIG.model(len(LETTERS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ps.train(CONFIG, out=tmp_path_factory.mktemp("pretrained") / "run")


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.numpy")


def values(run):
    return {name: p.numpy() for name, p in run.model.parameters.items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_run_starts_from_the_weights_of_another(run, tmp_path):
    checkpoint = max(run.path.glob("ckpt/*.npz"))
    for path in (checkpoint, run.path):
        assert_same(load_weights(path, SIZES, LETTERS), values(run))
    config = CONFIG.change(init=str(checkpoint), lr=0.0, optimizer="sgd", steps=1, eval_every=1)
    assert_same(values(ps.train(config)), values(run))
    halved = ps.train(config.change(policy="weights=fp16"))
    for name, array in values(run).items():
        np.testing.assert_array_equal(
            halved.model.parameters[name].numpy(), ps.quantize(array, "fp16")
        )


def test_a_run_that_started_from_a_file_resumes_replays_and_forks_without_it(run, tmp_path):
    path = tmp_path / "init.npz"
    path.write_bytes(max(run.path.glob("ckpt/*.npz")).read_bytes())
    config = CONFIG.change(init=str(path), checkpoint_every=2)
    stored = ps.train(config, out=tmp_path / "run")
    path.unlink()
    assert ps.resume(tmp_path / "run").steps["loss"].tolist() == stored.steps["loss"].tolist()
    assert stored.replay(3).difference == ""
    forked = stored.fork(at=2, out=tmp_path / "fork")
    assert_same(values(forked), values(stored))
    with pytest.raises(WeightsError, match="no file"):
        ps.train(config)


@pytest.mark.parametrize("names", ["precsim", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_safetensors_there_and_back(safetensors, tmp_path, names, tied):
    config = CONFIG.change(tied=tied)
    model = ps.train(config).model
    save_weights(tmp_path / "w.safetensors", model, LETTERS, names)
    found = load_weights(tmp_path / "w.safetensors", config.model(len(LETTERS)), LETTERS)
    assert_same(found, {name: p.numpy() for name, p in model.parameters.items()})
    assert all(array.dtype == np.float32 for array in found.values())
    kept = read_weights(tmp_path / "w.safetensors")
    assert (kept.heads, kept.alphabet) == (2, LETTERS)


def test_weights_that_float32_does_not_hold_are_saved_in_float64(safetensors, tmp_path):
    with ps.using("fp64"):
        model = ps.GPT(SIZES, seed=3)
    save_weights(tmp_path / "w.safetensors", model)
    found = load_weights(tmp_path / "w.safetensors", SIZES, LETTERS)
    assert_same(found, {name: p.numpy() for name, p in model.parameters.items()})
    assert found["wte.weight"].dtype == np.float64


def gpt2_names(prefix=""):
    """The names and shapes of a model that transformers has saved, spelled out by hand."""
    width, shapes = 8, {"wte.weight": (len(LETTERS), 8), "wpe.weight": (32, 8)}
    for layer in range(2):
        block = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        for name, (rows, columns) in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (columns,)}
        shapes[f"{block}attn.bias"] = (1, 1, 32, 32)
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def drawn(shapes, dtype=np.float32):
    generator = np.random.default_rng(7)
    return {n: generator.standard_normal(shape).astype(dtype) / 3 for n, shape in shapes.items()}


def gpt2_logits(torch, w, tokens, heads=2):
    """GPT-2 as transformers computes it: Conv1D is x @ w + b, the head is the embedding."""
    f = torch.nn.functional
    w = {
        name.removeprefix("transformer."): torch.tensor(a, dtype=torch.float64)
        for name, a in w.items()
    }
    x = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    width = x.shape[-1]
    for layer in range(2):

        def conv(x, name, h=f"h.{layer}."):
            return x @ w[f"{h}{name}.weight"] + w[f"{h}{name}.bias"]

        def norm(x, name):
            return f.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in conv(norm(x, f"h.{layer}.ln_1"), "attn.c_attn").split(width, -1)
        )
        y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + conv(y.transpose(1, 2).flatten(-2), "attn.c_proj")
        h = f.gelu(conv(norm(x, f"h.{layer}.ln_2"), "mlp.c_fc"), approximate="tanh")
        x = x + conv(h, "mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2s_weights_compute_gpt2s_logits(safetensors, tmp_path, prefix):
    torch = pytest.importorskip("torch")
    tensors = drawn(gpt2_names(prefix))
    safetensors.save_file(tensors, tmp_path / "gpt2.safetensors")
    sizes = CONFIG.change(tied=True).model(len(LETTERS))
    with ps.using("fp64"):
        model = ps.GPT(
            sizes, parameters=load_weights(tmp_path / "gpt2.safetensors", sizes, LETTERS)
        )
        tokens = np.arange(24).reshape(2, 12) % len(LETTERS)
        here = model(tokens).numpy()
    np.testing.assert_allclose(here, gpt2_logits(torch, tensors, torch.tensor(tokens)), rtol=1e-9)


def test_a_head_that_repeats_the_embedding_is_none_and_another_one_is(safetensors, tmp_path):
    tensors, path = drawn(gpt2_names("transformer.")), tmp_path / "w.safetensors"
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    safetensors.save_file(tensors, path)
    tied, untied = (CONFIG.change(tied=t).model(len(LETTERS)) for t in (True, False))
    assert "head.weight" not in load_weights(path, tied, LETTERS)
    head = load_weights(path, untied, LETTERS)["head.weight"]
    np.testing.assert_array_equal(head, tensors["lm_head.weight"].T)
    tensors["lm_head.weight"] = 2 * tensors["lm_head.weight"]
    safetensors.save_file(tensors, path)
    with pytest.raises(WeightsError, match="set tied=false"):
        load_weights(path, tied, LETTERS)
    del tensors["lm_head.weight"]
    safetensors.save_file(tensors, path)
    with pytest.raises(WeightsError, match="set tied=true"):
        load_weights(path, untied, LETTERS)


@pytest.mark.parametrize(
    ("dtype", "fmt"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float8_e4m3fn", "e4m3")]
)
def test_narrow_tensors_are_read_as_they_are(tmp_path, dtype, fmt):
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    tensors = drawn(gpt2_names(), np.float64)
    save(
        {n: torch.tensor(a).to(getattr(torch, dtype)) for n, a in tensors.items()},
        tmp_path / "w.safetensors",
    )
    sizes = CONFIG.change(tied=True).model(len(LETTERS))
    found = load_weights(tmp_path / "w.safetensors", sizes, LETTERS)
    np.testing.assert_array_equal(found["wte.weight"], ps.quantize(tensors["wte.weight"], fmt))


def test_tokens_go_by_their_bytes(run, safetensors, tmp_path):
    path, other = tmp_path / "w.safetensors", LETTERS[::-1]
    save_weights(path, run.model, LETTERS)
    found = load_weights(path, SIZES, other)
    own = values(run)
    np.testing.assert_array_equal(found["wte.weight"], own["wte.weight"][::-1])
    np.testing.assert_array_equal(found["head.weight"], own["head.weight"][:, ::-1])
    fewer = LETTERS[:4]
    assert load_weights(path, CONFIG.model(4), fewer)["wte.weight"].shape == (4, 8)
    with pytest.raises(WeightsError, match=r"without 2 of this one's bytes \(b'%&'\)"):
        load_weights(path, SIZES, LETTERS[:-2] + b"%&")


MODEL = {"layers": 2, "heads": 2, "width": 8, "context": 16, "tied": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("h.1.mlp.c_fc.bias"), r"lacks the tensor 'blocks.1.fc1.bias': expected"),
        (lambda t: [t.pop(n) for n in list(t) if "ln_2" in n], "lacks .* and 3 more"),
        (lambda t: t.update(score=np.ones(2)), "also has the tensor 'score': expected"),
        (
            lambda t: t.update({"ln_f.bias": np.ones(9)}),
            r"'lnf.bias' has shape \(9,\); expected \(8,\)",
        ),
        (
            lambda t: t.update({"ln_f.bias": np.full(8, np.nan)}),
            "'lnf.bias' holds values that are not",
        ),
        (lambda t: t.update({"ln_f.bias": np.ones(8, np.int64)}), "is I64; expected one of F64"),
        (
            lambda t: t.update({"wpe.weight": np.ones((5, 8))}),
            "model of context=5, .* set context=5",
        ),
        (lambda t: t.update({"wte.weight": np.ones((99, 8))}), "99 tokens, the text 11 different"),
        (lambda t: [t.pop(n) for n in list(t) if n[:3] == "h.1"], "model of layers=1, .* layers=2"),
        (
            lambda t: [t.pop(n) for n in list(t)] and t.update(x=np.ones(1)),
            "lacks .* precsim's names",
        ),
    ],
)
def test_a_file_that_is_another_models_is_refused_in_one_sentence(
    safetensors, tmp_path, change, message
):
    tensors = drawn(gpt2_names())
    change(tensors)
    safetensors.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message) as raised:
        load_weights(
            tmp_path / "w.safetensors", ps.GPTConfig(vocabulary=len(LETTERS), **MODEL), LETTERS
        )
    assert "\n" not in str(raised.value)


def test_a_model_with_other_heads_has_the_same_shapes_and_is_refused(run):
    with pytest.raises(
        WeightsError, match="model of heads=2, the config one of heads=4: set heads=2"
    ):
        load_weights(run.path, CONFIG.change(heads=4).model(len(LETTERS)), LETTERS)


@pytest.mark.parametrize("name", ["missing.npz", "missing.safetensors", "w.pt", "w.npz", "folder"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, name):
    (tmp_path / "w.pt").write_bytes(b"PK")
    (tmp_path / "w.npz").write_bytes(b"PK")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError) as raised:
        ps.train(CONFIG.change(init=str(tmp_path / name)))
    assert name in str(raised.value)


def test_an_npz_of_ones_own_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "w.npz", **{"weights/wte.weight": np.ones((3, 3))})
    with pytest.raises(WeightsError, match="no checkpoint of this version"):
        read_weights(tmp_path / "w.npz")


@pytest.fixture(scope="module")
def intact(run, tmp_path_factory):
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("damaged")
    save_weights(folder / "w.safetensors", run.model, LETTERS)
    (folder / "w.npz").write_bytes(max(run.path.glob("ckpt/*.npz")).read_bytes())
    return folder


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_holds_finite_weights_of_the_right_shapes(intact, data):
    path = intact / data.draw(st.sampled_from(["w.safetensors", "w.npz"]))
    content = bytearray(path.read_bytes())
    damaged = path.with_stem("damaged")
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged.write_bytes(content)
    try:
        found = load_weights(damaged, SIZES, LETTERS)
    except WeightsError:
        return
    assert {name: array.shape for name, array in found.items()} == SIZES.shapes()
    assert all(np.isfinite(array).all() for array in found.values())


def test_saving_refuses_other_endings_and_names(run, tmp_path):
    for path, names in ((tmp_path / "w.pt", "gpt2"), (tmp_path / "w.safetensors", "llama")):
        with pytest.raises(WeightsError, match=r"NAME.safetensors and names precsim or gpt2"):
            save_weights(path, run.model, names=names)


def test_the_header_says_what_the_model_is(run, safetensors, tmp_path):
    path = Path(tmp_path / "w.safetensors")
    save_weights(path, run.model, LETTERS)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["width"] == "8"
    assert bytes.fromhex(header["__metadata__"]["alphabet"]) == LETTERS


def test_without_the_library_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pip install 'precsim\[pretrained\]'"):
        read_weights(tmp_path / "w.safetensors")


def test_weights_go_out_and_come_in_on_the_command_line(run, safetensors, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    for words in (
        ["export", run.path, "--what", "weights", "-o", path],
        ["train", "--init", path, "--recipe", "seed_mixed", "--text", "reverse", "--steps", "1",
         *(f"--set={n}={getattr(CONFIG, n)}" for n in ("layers", "heads", "width", "context"))],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        assert not stopped.value.code
    assert "seed_mixed departs from standard practice in 5 ways" in capsys.readouterr().err
    for words, message in {
        ("export", run.path, "--what", "weights"): "needs a file to write",
        ("export", run.path, "--what", "weights", "-o", tmp_path / "w.pt"): "NAME.safetensors",
        (
            "train",
            "--init",
            path,
            "--text",
            "reverse",
            "--set",
            "context=16",
        ): "set width=8, heads=2",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
