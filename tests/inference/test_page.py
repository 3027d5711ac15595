"""A model in one page: what it computes in a browser is what the model computes, and the page does what it offers."""

import json
import time

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import convert
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import members
from rwkv_lab.data.tokenizers.bpe import BpeTokenizer, read_bpe, train
from rwkv_lab.data.tokenizers.byte import ByteTokenizer
from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.data.tokenizers.ids import IdsTokenizer
from rwkv_lab.inference import page
from rwkv_lab.inference.sampling import filter_logits, generate
from tests.models.test_convert import moved

LETTERS = CharTokenizer("abcdefghijklmnopqr")  # 19 tokens, as the models of `moved` have
RECURRENT = [name for name, config in members("model").items() if config.recurrent]
VARIANTS = [(name, {}) for name in RECURRENT] + [
    ("rwkv_v4", {"token_shift": "half", "head_qk_dim": 8, "norm": "post"}),
    ("rwkv_v4", {"token_shift": "none", "emb_norm": False}),
    ("rwkv_v2", {"head_qk_dim": 8, "head_qk": "max", "ffn_pre": True}),
]
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
TEXT = "It's 12 o'clock,  don't\n\n  you  see?\t\u00e9\u4f60\u597d \U0001f600\u0085x\ufeff\u00ad end "


def wait(browser, script):
    deadline = time.monotonic() + 30
    while not browser.execute_script(script):
        assert time.monotonic() < deadline, f"still not true: {script}"
        time.sleep(0.02)


def opened(browser, folder, model, tokenizer=LETTERS, form="fp32", **card):
    """The page of a model, open and ready."""
    file = folder / "x.html"
    page.save(model, tokenizer, form, page.Card(**{"title": "x", "facts": [], "bpb": {}, "text": ""} | card), file)
    browser.get(file.as_uri())
    wait(browser, "return session.model !== null")
    return browser


def errors(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
def test_two_hundred_greedy_tokens(browser, tmp_path, name, fields):
    model = moved(name, **fields)
    opened(browser, tmp_path, model)
    assert browser.execute_script("return greedy([1, 2, 3], 200)") == generate(model, [1, 2, 3], 200, temperature=0.0)
    assert errors(browser) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", page.FORMS)
def test_weights_are_those_that_were_measured(browser, tmp_path, form):
    model = moved("rwkv_v4")
    with torch.no_grad():
        model.emb.weight *= 1e-5  # in fp16 mostly subnormal
        model.head.weight[3] = 0.0
    opened(browser, tmp_path, model, form=form)
    for name, value in page.rounded(model, form).state_dict().items():
        found = browser.execute_script("return [...session.model.tensors[arguments[0]]]", name)
        assert torch.tensor(found).equal(value.flatten()), name


def test_what_rounding_costs():
    model = moved("rwkv_v4")
    for form, bits in (("fp16", 11), ("int8", 7)):
        rounded = page.rounded(model, form).state_dict()
        for name, value in model.state_dict().items():
            error = (rounded[name] - value).abs()
            assert float(error.max()) <= float(value.abs().max()) * 2.0**-bits
            assert value.ndim == 2 or not error.any()


def bpe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 50)
    train(tmp_path / "bpe.json", 300, [tmp_path / "text.txt"])
    return read_bpe(str(tmp_path / "bpe.json"))


def with_added(tmp_path):
    """A tokenizer with special tokens, spaces that are one token, and a normaliser, as the Pile's has."""
    plain = bpe(tmp_path)
    content, size = plain.hugging_face(), plain.vocab_size
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"] = [
        {"id": size, "content": "<|end|>", "special": True, "normalized": False, **flags},
        {"id": size + 1, "content": "  ", "special": False, "normalized": True, **flags},
    ]
    content["normalizer"] = {"type": "NFC"}
    return BpeTokenizer(json.dumps(content))


TOKENIZERS = {
    "char": lambda _: CharTokenizer("".join(sorted(set(TEXT) - {"k"}))),
    "byte": lambda _: ByteTokenizer(),
    "bpe": bpe,
    "added": with_added,
    "char of transformers": lambda _: BpeTokenizer(json.dumps(CharTokenizer("".join(sorted(TEXT))).hugging_face())),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_and_texts_are_the_same(browser, tmp_path, kind):
    tokenizer = TOKENIZERS[kind](tmp_path)
    model = models.build("rwkv_v4", vocab_size=tokenizer.vocab_size, n_layer=1, n_embd=8, ctx_len=8)
    opened(browser, tmp_path, model, tokenizer)
    assert browser.execute_script("return vocabulary.size") == tokenizer.vocab_size
    for text in (TEXT, TEXT + "<|end|>  e\u0301" + TEXT, "", " ", "Ж"):
        ids = browser.execute_script("return vocabulary.encode(arguments[0])", text)
        assert ids == tokenizer.encode(text).tolist()
        decode = "const s = vocabulary.stream(); return arguments[0].map(i => s.push(i)).join('') + s.end()"
        assert browser.execute_script(decode, ids) == tokenizer.decode(ids)


@pytest.mark.slow
def test_filters_keep_the_same(browser, tmp_path):
    opened(browser, tmp_path, moved("rwkv_v4"))
    logits = torch.randn(40, generator=torch.Generator().manual_seed(5)) * 2
    off = {"temperature": 1, "top_k": 0, "top_p": 1, "top_p_x": 0, "top_a": 0}
    for filters in (
        {},
        {"temperature": 0},
        {"temperature": 0.5, "top_k": 5},
        {"top_p": 0.8},
        {"top_p": 0},
        {"top_p": 0.5, "top_p_x": 0.02, "temperature": 2},
        {"top_a": 0.2},
        {"top_a": 1, "top_k": 3, "top_p": 0.9},
    ):
        script = "return [...filtered(Float64Array.from(arguments[0]), arguments[1])]"
        drawn_from = browser.execute_script(script, logits.tolist(), off | filters)
        found = torch.tensor(drawn_from, dtype=torch.float32)
        want = filter_logits(logits[None], **(off | filters))[0]
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    draws = browser.execute_script("return [0, 0.4, 0.6, 0.999999].map(u => drawn([0, 0.5, 0, 0.5, 0], u))")
    assert draws == [1, 1, 3, 3]


def press(browser, button):
    browser.find_element("id", button).click()
    wait(browser, "return !session.running")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1366, "light"), (390, "dark")])
def test_the_page_writes_goes_on_and_stops(browser, tmp_path, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_of = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_of)
    card = {"title": HOSTILE, "facts": [(HOSTILE, HOSTILE)], "prompt": HOSTILE, "bpb": {"fp32": 1.25}}
    opened(browser, tmp_path, moved("rwkv_v4"), **card)
    assert browser.title == HOSTILE
    prompt, output = browser.find_element("id", "prompt"), browser.find_element("id", "output")
    prompt.clear()
    prompt.send_keys("abc")
    press(browser, "write")
    text = "return document.getElementById('output').textContent"
    assert browser.execute_script(text)[:3] == "abc" and len(browser.execute_script(text)) == 403
    status = browser.find_element("id", "status")
    assert status.text.startswith("400 tokens, ") and "per second" in status.text
    press(browser, "more")
    assert len(browser.execute_script(text)) == 803
    length = browser.find_element("id", "length")
    length.clear()
    length.send_keys("100000000")
    browser.find_element("id", "write").click()
    wait(browser, "return document.getElementById('output').textContent.length > 20")
    press(browser, "stop")
    assert status.text.startswith("Stopped after ")
    for name, wrong in (("length", "0"), ("temperature", "-1"), ("top_p", "2"), ("top_k", "1.5")):
        field = browser.find_element("id", name)
        before = field.get_attribute("value")
        field.clear()
        field.send_keys(wrong)
        press(browser, "write")
        assert "wrong" in status.get_attribute("class") and "must be" in status.text
        field.clear()
        field.send_keys(before)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert output.is_displayed() and errors(browser) == []


@pytest.mark.slow
def test_a_run_of_token_ids(browser, tmp_path):
    opened(browser, tmp_path, moved("rwkv_v4"), IdsTokenizer(19), prompt="3 17 5")
    press(browser, "write")
    words = browser.execute_script("return document.getElementById('output').textContent").split()
    assert len(words) == 403 and max(map(int, words)) < 19
    browser.find_element("id", "prompt").send_keys(" 19")
    press(browser, "write")
    assert "wrong" in browser.find_element("id", "status").get_attribute("class")


def saved(folder, model, tokenizer=LETTERS):
    folder.mkdir()
    models.save(model, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return str(folder)


def test_the_command_measures_each_form(tmp_path, capsys):
    model, text = saved(tmp_path / "run", moved("rwkv_v4")), tmp_path / "text.txt"
    text.write_text("abc def " * 30)
    convert.main([model, str(tmp_path / "x.html"), "--weights", "int8", "--text", str(text)])
    assert "int8" in capsys.readouterr().out
    content = (tmp_path / "x.html").read_text()
    assert "first 239 tokens of text.txt" in content
    assert "int8, in this page" in content and "not measured" not in content and '"type": "int8"' in content
    convert.main([model, str(tmp_path / "y.html")])
    assert "not measured" in (tmp_path / "y.html").read_text()


def lowercased():
    content = BpeTokenizer(json.dumps(ByteTokenizer().hugging_face())).hugging_face()
    return BpeTokenizer(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))


@pytest.mark.parametrize("name", [name for name in members("model") if name not in RECURRENT])
def test_other_architectures_are_refused(tmp_path, name):
    model = saved(tmp_path / "run", models.build(name, vocab_size=19, n_layer=1, n_embd=16, ctx_len=8))
    with pytest.raises(UserError, match=name):
        convert.main([model, str(tmp_path / "x.html")])
    assert not (tmp_path / "x.html").exists()


def test_what_a_page_cannot_hold_is_refused(tmp_path):
    model = moved("rwkv_v4")
    card = page.Card("x", [], {}, "")
    with torch.no_grad():
        model.head.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"head\.weight.*int8"):
        page.save(model, LETTERS, "fp16", card, tmp_path / "x.html")
    with pytest.raises(UserError, match="Lowercase"):
        page.save(model, lowercased(), "fp32", card, tmp_path / "x.html")
    with pytest.raises(UserError, match="--weights"):
        convert.main([saved(tmp_path / "run", model), str(tmp_path / "x.pth"), "--weights", "fp32"])
    assert not list(tmp_path.glob("x.*"))
