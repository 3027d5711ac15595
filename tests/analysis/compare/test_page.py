"""The page as text: everything in it, nothing outside it, and small."""

import re
from html.parser import HTMLParser

import pytest

from analysis.compare.page import render, visible
from analysis.compare.records import collect
from analysis.compare.summary import compare

HOSTILE = (
    "</pre></script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\x00\x1b[31m"
)


class Outline(HTMLParser):
    """Tags with attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def outline(html: str) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    return parsed


@pytest.fixture
def page(tmp_path, fingerprint):
    """The page of all runs made so far."""

    def make() -> str:
        return render(compare("study", collect([tmp_path / "runs"], fingerprint)), "the command", "today")

    return make


def test_every_run_is_on_the_page_whatever_became_of_it(make_run, page):
    make_run("rwkv_v4", 1)
    make_run("rwkv_v4", 2, status="failed", part=0.2, facts={"reason": "out of memory"})
    make_run("rwkv_v4", 3, status="running", part=0.0)
    (make_run("rwkv_v4", 4) / "run.json").write_text("{")
    make_run("mha_pro", 1, facts={"code": "other"})
    text = " ".join(outline(page()).text)
    for name in ("rwkv_v4 seed 1", "rwkv_v4 seed 2", "rwkv_v4 seed 3", "rwkv_v4-enwik8-s4-00000000"):
        assert name in text
    for word in ("complete", "failed", "out of memory", "interrupted", "unreadable", "stale", "The text."):
        assert word in text
    for word in ("model.name", "A processor", "0123456789abcdef", "2.13.0"):
        assert word in text


def test_it_loads_nothing(make_run, page):
    make_run()
    found = outline(page())
    for tag, attributes in found.tags:
        for name in ("src", "href", "data", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
    policy = next(
        a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "http" not in policy


def test_what_a_run_wrote_is_text_and_never_markup(make_run, page):
    make_run(HOSTILE.replace("/", "\\").replace("\x00", "")[:40], 1, sample=HOSTILE)
    make_run("rwkv_v4", 1, fields={"note": HOSTILE[:90]}, sample=HOSTILE)
    make_run("rwkv_v4", 2, status="failed", facts={"reason": HOSTILE})
    html = page()
    found = outline(html)
    assert "<script>document.title" not in html and "<img" not in html
    assert not [tag for tag, attributes in found.tags if "onerror" in attributes or tag == "img"]
    assert "\x00" not in html and "\x1b" not in html


def test_control_characters_are_shown_as_replaced():
    assert visible("a\tb\nc\x00\x9b\ud800é😀") == "a\tb\nc\ufffd\ufffd\ufffdé😀"


@pytest.mark.slow
def test_a_hundred_runs_of_a_thousand_rows_stay_below_three_megabytes(make_run, page):
    """A hundred groups of one run each, which take more room than fewer groups of several."""
    text = "A sample that is longer than what a page of many runs has room for. " * 150
    for i in range(100):
        width = {"n_ffn": i, "trick_of_a_long_name": f"value{i}"}
        make_run("rwkv_v4", 1, 1.8 + i / 1e4, rows=1000, suffix=f"{i:08d}", fields=width, sample=text)
    assert len(page().encode()) < 3_000_000


def test_an_empty_study_still_has_its_page(make_run, page):
    make_run(status="failed", part=0.0, sample=None, facts={"flops_per_token": None, "data": None})
    html = page()
    assert "wrote no sample" in html and re.search(r"failed", html)


def test_pictures_and_the_loss_by_position_are_inside_the_page(make_run, page):
    drawn, other = make_run("rwkv_v4", sample=None), make_run("mha_rotary", sample=None)
    (drawn / "images.png").write_bytes(b"\x89PNG and more")
    (other / "images.png").write_bytes(b"<svg onload=alert(1)>")
    (drawn / "by_position.csv").write_text("distance,carried,window\n1,2.5,2.5\n2,,2.25\n")
    found = outline(page())
    stills = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [still["src"].partition(",")[0] for still in stills] == ["data:image/png;base64"] * 2
    assert "rwkv_v4" in stills[1]["alt"] and any("Loss by position" in text for text in found.text)
