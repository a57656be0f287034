"""report.html: what lies in the file, and how it behaves in a real browser, with rows that try to break it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from datasets import Dataset, concatenate_datasets

from srt_hf import schema
from srt_hf.report import Report
from srt_hf.viewer import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

COLUMNS = ("id", *schema.TRIPLE, "candidates", "scores", "choice", "origin", "kept", "reason", "flags")
REASONS = ("response_chosen", "both_chosen", "original_preferred", "teacher_failed")
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


class Plot(NamedTuple):
    name: str
    title: str
    words: str
    png: bytes


def candidate(origin: str, texts: tuple[str | None, ...], error: str | None = None) -> dict[str, Any]:
    pair = dict(zip((*schema.TRIPLE, "critique"), texts, strict=True))
    call: dict[str, Any] = dict.fromkeys(("teacher", "finish_reason", "prompt_tokens", "completion_tokens"))
    if origin != "original":
        call = {"teacher": "org/teacher@0123abcd", "finish_reason": "stop", "prompt_tokens": 310, "completion_tokens": 240}
    return {"origin": origin, **pair, **call, "sample": 0, "answer_cut": None, "error": error}


def score(ifd: float, r_ifd: float | None) -> dict[str, Any]:
    numbers = dict.fromkeys(schema.NLLS, 1.25) | dict.fromkeys(schema.COUNTS, 40)
    return {**numbers, "ifd": ifd, "r_ifd": r_ifd, "missing": None}


def sentence(draw: random.Random, length: int) -> str:
    """Words as common and as rare as those of a language."""
    return " ".join(f"w{int(20_000 ** draw.random())}" for _ in range(length))


def make_row(n: int, instruction: str = "", output: str = "", critique: str = "") -> dict[str, Any]:
    """Row n: its origin and reason go round, and every seventh has an error, every fifth a flag, each tenth no r_ifd."""
    draw = random.Random(n)
    instruction, output = instruction or f"Explain topic {n} to a child.", output or sentence(draw, 20 + n % 40)
    critique = critique or "It is short. " + sentence(draw, 60)
    better, longer = instruction.replace("a child", "an expert"), f"{output} And more: {sentence(draw, 60)}"
    candidates = [
        candidate("original", (instruction, "Mind the time." if n % 3 == 0 else "", output, None)),
        candidate("instruction", (better, "", longer, critique)),
        candidate("response", (instruction, "Mind the time." if n % 3 == 0 else "", longer, critique)),
        candidate("both", (better, "", longer + " Truly.", critique)),
    ]
    if n % 7 == 0:
        candidates[3] = candidate("both", (None, None, None, None), "truncated")
    origin = {"response_chosen": "response", "both_chosen": "both"}.get(reason := REASONS[n % 4], "original")
    origin = "response" if origin == "both" and n % 7 == 0 else origin
    scores = [score(0.5 + m / 10 + n / 1_000, None if n % 10 == 0 else 0.9 - n / 1_000) for m in range(4)]
    flags = ["boilerplate"] if n % 5 == 0 else []
    texts = {"instruction": instruction, "input": candidates[0]["input"], "output": output}
    choice = [one["origin"] for one in candidates].index(origin)
    decision = {"choice": choice, "origin": origin, "kept": reason.endswith("_chosen"), "reason": reason}
    return {"id": f"row-{n}", **texts, "candidates": candidates, "scores": scores, **decision, "flags": flags}


def as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    return Dataset.from_dict(columns, features=schema.features(COLUMNS))


def a_report(rows: int = 60) -> Report:
    report = Report("exhaustive", "paper", "reflected", rows=rows, kept=rows // 2, reasons=dict.fromkeys(REASONS, rows // 4))
    spread = {"original_of_kept": {"p50": 0.8124}, "chosen": {"p50": 0.6401}}
    report.scores, report.lengths = {"ifd": spread, "r_ifd": spread}, {key: {"p50": 50.0} for key in spread}  # type: ignore[dict-item]
    return report


def write(path: Path, rows: Dataset, title: str = "A run") -> Path:
    plots = [Plot("ifd", "IFD", "IFD before and after: the median falls.", PIXEL)]
    write_page(path, title, a_report(len(rows)), rows, plots)  # type: ignore[arg-type]
    return path


# What lies in the file


class _Reader(HTMLParser):
    """Every tag with its attributes, and the text inside each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._current = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._current = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._current = ""

    def handle_data(self, data: str) -> None:
        if self._current in self.inside:
            self.inside[self._current][-1] += data


def unpacked(page: str, kind: str) -> list[list[dict[str, Any]]]:
    packed = re.findall(rf'<script type="application/octet-stream" id="{kind}-\d+">([A-Za-z0-9+/=]*)</script>', page)
    return [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]


def test_every_text_and_number_of_a_row_is_in_its_block(tmp_path: Path) -> None:
    rows = [make_row(n) for n in range(450)]
    rows[7]["scores"][1]["ifd"] = float("nan")
    page = write(tmp_path / "report.html", as_dataset(rows)).read_text(encoding="utf-8")
    blocks, indexes = unpacked(page, "block"), unpacked(page, "index")
    assert [len(block) for block in blocks] == [len(index) for index in indexes] == [200, 200, 50]
    for row, block, entry in zip(rows, chain(*blocks), chain(*indexes), strict=True):
        assert block["id"] == entry["id"] == row["id"] and block["choice"] == row["choice"]
        for name in ("candidates", "scores"):
            given = [{key: value for key, value in one.items() if value is not None and value == value} for one in row[name]]
            assert block[name] == given
    seven = indexes[0][7]
    assert seven["excerpt"] == rows[7]["instruction"] and seven["errors"] == ["truncated"] and seven["flags"] == []
    assert seven["ifd"] == [rows[7]["scores"][0]["ifd"]] * 2 and seven["words"] == [27, 27]


def test_blocks_end_early_where_answers_are_long(tmp_path: Path) -> None:
    rows = as_dataset([make_row(n, output="long " * 40_000) for n in range(6)])
    blocks = unpacked(write(tmp_path / "report.html", rows).read_text(), "block")
    assert sum(map(len, blocks)) == 6 and max(map(len, blocks)) <= 2


def test_the_policy_names_what_is_inlined_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = _Reader(write(tmp_path / "report.html", as_dataset([make_row(1)])).read_text())
    [policy] = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (page.inside["script"][-1],)]
    digests += [base64.b64encode(hashlib.sha256(page.inside["style"][0].encode()).digest()).decode()]
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert f"script-src 'sha256-{digests[0]}'" in policy and f"style-src 'sha256-{digests[1]}'" in policy
    for _tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        assert all((attrs[name] or "").startswith("data:") for name in ("src", "href") if name in attrs)
    assert "innerHTML" not in page.inside["script"][-1] and "http" not in page.inside["style"][0]


def test_strangers_words_outside_the_blocks_are_escaped(tmp_path: Path) -> None:
    evil = "</title></script><script>pwned=1</script>\udc80\x00\"'"
    report = a_report()
    report.teacher = {"name": "x"}
    report.reasons = {evil: 3}
    plots = [Plot("a", evil, evil, PIXEL)]
    write_page(tmp_path / "report.html", evil, report, as_dataset([make_row(1)]), plots)  # type: ignore[arg-type]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 4 and text.count("</script>") == 4 and "&lt;script&gt;pwned" in text
    assert [attrs["alt"] for tag, attrs in _Reader(text).tags if tag == "img"] == [evil.replace("\udc80", "?")]


def test_no_rows_and_no_flags(tmp_path: Path) -> None:
    assert unpacked(write(tmp_path / "none.html", as_dataset([])).read_text(), "block") == []
    rows = as_dataset([make_row(5)]).remove_columns("flags")
    [[entry]] = unpacked(write(tmp_path / "old.html", rows).read_text(), "index")
    assert entry["flags"] == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write(tmp_path / "nowhere" / "report.html", as_dataset([]))


# How it behaves

HEARTBEAT = """
window.gap = 0; window.longest = 0;
let last = performance.now();
setInterval(() => { const now = performance.now(); window.gap = Math.max(window.gap, now - last); last = now; }, 20);
const look = (list) => { for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration); };
new PerformanceObserver(look).observe({ type: "longtask", buffered: true });
"""


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a file in a fresh window. At the end: nothing was complained of, nothing asked for but the file, nothing ran."""
    pages: list[tuple[Page, Path]] = []
    noted: list[str] = []
    asked: list[str] = []

    def open_page(path: Path, address: str = "", **context: Any) -> Page:
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(30_000)
        page.add_init_script(HEARTBEAT)
        page.on("console", lambda message: noted.append(message.text))
        page.on("pageerror", lambda error: noted.append(str(error)))
        page.on("dialog", lambda dialog: (noted.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.goto(path.as_uri() + address)
        page.wait_for_selector("html[data-ready]", state="attached")
        pages.append((page, path))
        return page

    yield open_page
    for page, _path in pages:
        assert page.evaluate("window.pwned") is None
        page.context.close()
    assert noted == []
    assert {url for url in asked if not url.startswith("data:")} <= {path.as_uri() for _, path in pages}


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [make_row(n) for n in range(60)]
    rows[41] = make_row(41, instruction="Name a PANGOLIN's habitat.", critique="The “habitat” is\ntoo vague here.")
    return write(tmp_path_factory.mktemp("page") / "report.html", as_dataset(rows))


IDS = "[...document.querySelectorAll('button.open')].map(e => Number(e.dataset.place))"


def shows(page: Page, count: str, places: list[int] | None = None) -> None:
    """Wait until the count says so and is final, and until these rows are on the screen."""
    page.wait_for_function(
        f"""([count, places]) => {{
            const e = document.getElementById("count");
            return e.textContent === count && e.ariaBusy !== "true" && (!places || places.join() === {IDS}.join());
        }}""",
        arg=[count, places],
    )


def ids(page: Page) -> list[int]:
    """Numbers of the rows on the screen."""
    found: list[int] = page.evaluate(IDS)
    return found


def test_search(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    shows(page, "60 rows")
    for query, hits in (
        ("pangolin habitat", [41]),  # whatever the case and the order
        ("habitat vague", [41]),  # in different fields
        ('"too vague"', [41]),
        ('"vague too"', []),
        ('"is\\ntoo"', []),
        ("row-7", [7]),
        ('"TOPIC 59"', [59]),
        ("“habitat”", [41]),
        ("\\", []),
    ):
        page.fill("#search", query)
        shows(page, f"{len(hits)} of 60 rows", hits)
        assert page.is_visible("#nothing") == (not hits)
    page.fill("#search", "")
    shows(page, "60 rows")
    page.locator("#search").press_sequentially("expert zzz", delay=170)  # each word begun is a search, and the last one counts
    shows(page, "0 of 60 rows", [])


def test_filters_count_what_they_would_leave(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    page.select_option("#filter-reason", "teacher_failed")
    shows(page, "15 of 60 rows")
    assert ids(page) == list(range(3, 60, 4))
    kept = page.locator("#filter-kept option").all_text_contents()
    assert kept == ["all", "kept (0)", "left out (15)"]
    page.select_option("#filter-flag", "boilerplate")
    shows(page, "3 of 60 rows")
    page.select_option("#filter-error", "truncated")
    shows(page, "1 of 60 rows")
    assert ids(page) == [35]
    page.click("#clear")
    shows(page, "60 rows")
    page.select_option("#filter-origin", "both")
    page.fill("#search", "expert")
    shows(page, "13 of 60 rows")


def test_order_puts_what_is_missing_last(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    page.click("button[aria-label='Sort by r-IFD, before']")
    assert ids(page)[:3] == [59, 58, 57] and page.get_attribute("th[data-key=r_ifd-before]", "aria-sort") == "ascending"
    page.click("button[aria-label='Sort by r-IFD, before']")
    assert ids(page)[:3] == [1, 2, 3] and page.get_attribute("th[data-key=r_ifd-before]", "aria-sort") == "descending"
    page.click("#last-page")
    assert ids(page)[-6:] == [0, 10, 20, 30, 40, 50]
    page.select_option("#sort", "words-change")
    assert ids(page)[0] % 4 < 2  # a rewritten one is longer
    page.select_option("#sort", "")
    page.click("#down")
    assert ids(page)[:2] == [0, 1]


def test_pages(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    assert ids(page) == list(range(25)) and page.is_disabled("#previous-page") and page.text_content("#pages") == "3"
    page.click("#next-page")
    assert ids(page) == list(range(25, 50))
    page.click("#last-page")
    assert ids(page) == list(range(50, 60)) and page.is_disabled("#next-page")
    page.fill("#page", "2")
    page.press("#page", "Enter")
    assert ids(page)[0] == 25
    for odd, first in (("99", 50), ("-3", 0), ("", 0)):
        page.fill("#page", odd)
        page.press("#page", "Enter")
        assert ids(page)[0] == first


def marks(page: Page, heading: str) -> tuple[list[str], list[str]]:
    box = page.locator(f"#detail h3:text-is('{heading}') + div")
    return box.locator("del").all_text_contents(), box.locator("ins").all_text_contents()


def test_an_opened_row_compares_any_candidate_with_the_original(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    page.click("button[data-place='9']")  # both_chosen
    page.wait_for_selector("#detail")
    assert page.get_attribute("button[data-place='9']", "aria-expanded") == "true"
    assert marks(page, "Instruction") == (["a child"], ["an expert"])
    assert marks(page, "Input") == (["Mind the time."], [])
    removed, added = marks(page, "Response")
    assert removed == [] and added[0].startswith(" And more:") and added[0].endswith("Truly.")
    for style, wanted in (("del", "line-through"), ("ins", "underline")):
        line = "e => getComputedStyle(e).textDecorationLine"
        assert page.locator(f"#detail {style}").first.evaluate(line) == wanted
    shown = page.locator("#detail").inner_text()
    assert "both_chosen" in shown and "It is short." in shown and "org/teacher@0123abcd" in shown and "0.8090" in shown
    page.click("#detail button:text-is('response')")
    assert page.text_content("#detail h3:text-is('Instruction') + div .help") == "unchanged"
    page.click("#detail button:text-is('Side by side')")
    assert page.locator("#detail del, #detail ins").count() == 0
    assert page.locator("#detail .sides").count() == 3
    page.click("button[data-place='7']")  # left out, the last candidate with an error
    page.wait_for_function("() => document.querySelector('#detail code').textContent === 'row-7'")
    assert page.locator("#detail button[aria-pressed=true]").first.inner_text() == "response"
    page.click("#detail button:text-is('both, truncated')")
    assert "the reply stopped at the token limit" in page.inner_text("#detail")
    page.click("button[data-place='7']")
    assert page.locator("#detail").count() == 0


def test_the_marks_add_up_to_both_texts(visit: Callable[..., Page], tmp_path: Path) -> None:
    draw = random.Random(3)
    pieces = ["word", "other", " ", "  ", "\n", "\n\n", ", ", "é", "語", "😀", "x=1;", "<b>", "."]
    rows = [make_row(n, output="".join(draw.choices(pieces, k=draw.choice([1, 5, 60])))) for n in range(1, 26)]
    for row in rows:
        for one in row["candidates"][1:]:
            one |= {"output": "".join(draw.choices(pieces, k=draw.choice([1, 5, 60]))) + "!", "error": None}
    page = visit(write(tmp_path / "report.html", as_dataset(rows)))
    for place, row in enumerate(rows):
        page.click(f"button[data-place='{place}']")
        page.wait_for_function("id => document.querySelector('#detail code')?.textContent === id", arg=row["id"])
        page.click("#detail button:text-matches('^response')")
        box = page.locator("#detail h3:text-is('Response') + div .text")
        if row["candidates"][0]["output"].strip():
            for left_out, n in (("ins", 0), ("del", 2)):
                text = box.evaluate(
                    "(box, out) => [...box.childNodes].filter(e => e.localName !== out).map(e => e.textContent).join('')",
                    left_out,
                )
                assert text == row["candidates"][n]["output"]


def test_by_keyboard_alone(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    focused = "document.activeElement.dataset.place ?? document.activeElement.id"
    keys = page.keyboard
    keys.press("/")
    assert page.evaluate(focused) == "search"
    keys.type("expert")
    shows(page, "59 of 60 rows")
    keys.press("Escape")
    shows(page, "60 rows")
    page.evaluate("document.activeElement.blur()")
    for key, place in (("j", "0"), ("j", "1"), ("ArrowDown", "2"), ("k", "1")):
        keys.press(key)
        assert page.evaluate(focused) == place
    keys.press("Enter")
    page.wait_for_selector("#detail")
    pressed = page.locator("#detail button[aria-pressed=true]")
    assert pressed.all_inner_texts() == ["both, chosen"]
    keys.press("c")
    assert pressed.all_inner_texts() == ["instruction"]
    keys.press("s")
    assert pressed.all_inner_texts() == ["instruction", "Side by side"]
    keys.press("Tab")
    keys.press("Tab")
    keys.press("Space")  # the second candidate's button, which stays in focus
    assert pressed.all_inner_texts() == ["response", "Side by side"]
    keys.press("Escape")
    assert page.locator("#detail").count() == 0 and page.evaluate(focused) == "1"
    keys.press("n")
    assert ids(page)[0] == 25 and page.evaluate(focused) == "25"
    keys.press("k")
    assert page.evaluate(focused) == "24"
    keys.press("j")
    keys.press("p")
    assert ids(page)[0] == 0
    page.uncheck("#keys")
    keys.press("n")
    assert ids(page)[0] == 0


def test_the_address_holds_the_view(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty)
    page.fill("#search", "expert")
    shows(page, "59 of 60 rows")
    page.select_option("#filter-kept", "left out")
    page.select_option("#sort", "ifd-before")
    page.click("#down")
    page.click("#next-page")
    page.locator("button.open").nth(1).click()
    page.wait_for_selector("#detail")
    place = ids(page)[1]
    page.wait_for_function(f"() => location.hash.includes('row=row-{place}')")
    address = page.evaluate("location.hash")
    again = visit(sixty, address)
    again.wait_for_selector("#detail")
    assert ids(again) == ids(page) and again.inner_text("#detail code") == f"row-{place}"
    assert again.input_value("#search") == "expert" and again.input_value("#filter-kept") == "left out"
    for odd in ("#page=x&sort=__proto__-before&reason=nothing", "#row=%3Cscript%3E&q=%00", "#%"):
        assert visit(sixty, odd).is_visible("#viewer")


EVIL = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 2'><svg onload='window.pwned = 3'>",
    "</script><script>window.pwned = 4</script><!-- <![CDATA[",
    "[a](javascript:window.pwned=5) javascript:window.pwned=5",
    "\u202etxet desrever\u202c \u2066isolated\x00\x1b[31m",
    "{{constructor.constructor('window.pwned=6')()}} ${window.pwned=7} &lt;b&gt;",
    "__proto__",
    '"><iframe srcdoc="<script>parent.pwned=8</script>">',
]


def test_hostile_rows_are_only_text(visit: Callable[..., Page], tmp_path: Path) -> None:
    rows = []
    for n, text in enumerate(EVIL):
        row = make_row(n, instruction=text, output=f"{text} {text}", critique=text)
        for one in row["candidates"][1:]:
            one |= {"teacher": text, "output": f"{text} more", "error": text if one["origin"] == "both" else one["error"]}
        rows.append(row | {"id": text, "reason": text, "flags": [text]})
    rows.append(make_row(8, output="x " * 100_000, critique="y " * 100_000))
    rows[8]["candidates"][2]["output"] = "many " * 40_000
    page = visit(write(tmp_path / "evil.html", as_dataset(rows), title=EVIL[2] + "\udc80"))
    assert page.locator("h1").inner_text().startswith(EVIL[2])
    for n, text in enumerate(EVIL):
        page.click(f"button[data-place='{n}']")
        wanted = re.sub(r"[\0-\x1f\u202a-\u202e\u2066-\u2069]", lambda c: f"⟦U+{ord(c[0]):04X}⟧", text)
        page.wait_for_function("text => document.querySelector('#detail code')?.textContent === text", arg=wanted)
        for button in page.locator("#detail .switches button").all():
            button.click()
    page.click("button[data-place='8']")
    page.wait_for_function("() => document.querySelector('#detail code')?.textContent === 'row-8'")
    assert "Too long to compare word by word" in page.inner_text("#detail")
    page.locator("#detail button:text-is('Show all of it')").first.click()
    page.wait_for_function("() => document.querySelector('#detail').textContent.length > 400_000")
    for text, hits in (("<script>window.pwned", 2), ("__proto__", 1), ("onerror", 1)):
        page.fill("#search", text)
        shows(page, f"{hits} of 9 rows")
    page.fill("#search", "")
    shows(page, "9 rows")
    page.select_option("#filter-reason", "__proto__")
    shows(page, "1 of 9 rows")
    page.wait_for_timeout(300)  # whatever might still load or run
    assert page.evaluate("window.gap") < 2_000


def test_a_damaged_file_says_so(browser: Browser, sixty: Path, tmp_path: Path) -> None:
    text = re.sub(r'(id="index-0">)[^<]*', rf"\1{base64.b64encode(b'no gzip').decode()}", sixty.read_text())
    (tmp_path / "damaged.html").write_text(text)
    page = browser.new_page()
    page.goto((tmp_path / "damaged.html").as_uri())
    page.wait_for_selector("#trouble:visible")
    assert "cannot be read" in page.inner_text("#trouble")
    page.close()


def test_without_script_the_summary_stands_and_the_rest_is_explained(browser: Browser, sixty: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(sixty.as_uri())
    assert "needs JavaScript" in page.inner_text("noscript") and "50.0 %" in page.inner_text(".figures")
    context.close()


def test_nothing_is_wider_than_a_phone(visit: Callable[..., Page], sixty: Path) -> None:
    page = visit(sixty, "#row=row-9", viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.wait_for_selector("#detail")
    page.click(".summary > summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#detail button:text-is('Side by side')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_fifty_thousand_rows(visit: Callable[..., Page], tmp_path: Path) -> None:
    """Rows about as long as Alpaca's with three reflections: some 350 MB of text."""
    draw = random.Random(0)
    written = [make_row(n, sentence(draw, 15), sentence(draw, 60)) for n in range(2_000)]
    for one in (one for row in written for one in row["candidates"][1:]):
        one |= {"output": sentence(draw, 180), "critique": sentence(draw, 180)}
    rows = concatenate_datasets([as_dataset(written)] * 25).remove_columns("id")
    rows = rows.add_column("id", [f"row-{n}" for n in range(len(rows))])
    started = time.perf_counter()
    path = write(tmp_path / "report.html", rows)
    print(f"\nwritten in {time.perf_counter() - started:.1f} s, {path.stat().st_size / 1e6:.0f} MB")

    def step(name: str, started: float) -> None:
        gap, longest = page.evaluate("[window.gap, window.longest]")
        print(f"{name}: {time.perf_counter() - started:.1f} s, longest pause {gap:.0f} ms, longest task {longest:.0f} ms")
        page.evaluate("window.gap = window.longest = 0")
        assert gap < 2_000

    started = time.perf_counter()
    page = visit(path)
    step("opened", started)
    shows(page, "50,000 rows")
    for query, hits in (("row-49999", "1"), ("w1 w2 w3", "50,000"), ('"expert"', "0")):
        started = time.perf_counter()
        page.fill("#search", query)
        shows(page, f"{hits} of 50,000 rows" if hits != "50,000" else "50,000 rows")
        step(f"searched for {query}", started)
    page.fill("#search", "")
    shows(page, "50,000 rows")
    for action in ("#sort", "#filter-reason"):
        started = time.perf_counter()
        page.select_option(action, index=2)
        step(action, started)
    page.click("#last-page")
    page.locator("button.open").last.click()
    page.wait_for_selector("#detail")
