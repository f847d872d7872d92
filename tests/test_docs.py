"""The pages under docs/credit: complete, with examples that run and recipes that load."""

import base64
import contextlib
import importlib.util
import io
import re
import shutil
import sys
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, get_args

import matplotlib
import pytest
from PIL import Image
from pydantic import BaseModel

from tpcli import names
from tpcli.bench.items import load
from tpcli.bench.spec import read
from tpcli.cli.app import main
from tpcli.recipe.load import load_recipe
from tpcli.recipe.scalar import moves
from tpcli.recipe.schema import Recipe

ROOT = Path(__file__).parents[1]
CREDIT = ROOT / "docs" / "credit"
FIGURES = ROOT / "docs" / "figures"
INDEX = CREDIT / "README.md"
PAGES = sorted(CREDIT.glob("*.md"))
CRITERIA = [page for page in PAGES if page.name not in ("README.md", "objectives.md")]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """What a page links to or shows, but for the web."""
    found = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    return [link for link in found if "://" not in link]


def words(page: Path) -> set[str]:
    """What stands in backticks outside the fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`([^`\n]+)`", prose))


def cases(language: str) -> list[Any]:
    """Every block of every page, named by its page."""
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language))
    ]


def drawing(svg: str) -> tuple[list[str], list[float], list[int]]:
    """Words, numbers and the pixels of the images of a figure; no names of its parts, which are
    hashes of the numbers."""
    images = re.compile(r'data:image/png;base64,([^"]*)', re.DOTALL)
    pixels = [
        level
        for found in images.findall(svg)
        for level in Image.open(io.BytesIO(base64.b64decode(found))).tobytes()
    ]
    plain = re.sub(r'id="\w+"|#\w+(?=[")])', "", images.sub("", svg))
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.split(number, plain), [float(n) for n in re.findall(number, plain)], pixels


@cache
def figures() -> types.ModuleType:
    """docs/figures.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its own module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "docs_figures", module)
        spec.loader.exec_module(module)
    return module


def test_every_allocation_has_a_page_that_the_index_links() -> None:
    allocations = get_args(names.AllocationName)
    pages = {f"{name.replace('_', '-')}.md" for name in allocations}
    assert {page.name for page in PAGES} == pages | {"README.md", "objectives.md"}
    assert set(allocations) <= words(INDEX)
    assert pages | {"objectives.md"} <= set(links(INDEX))


def test_the_tables_have_every_name() -> None:
    assert set(get_args(names.CurveName)) <= words(INDEX)
    listed = words(CREDIT / "objectives.md")
    for choices in (
        names.AdvantageName,
        names.ObjectiveName,
        names.ReductionName,
        names.DenominatorName,
        names.KlName,
        names.CorrectionName,
    ):
        assert set(get_args(choices)) <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_exists(page: Path) -> None:
    assert [link for link in links(page) if not (CREDIT / link).is_file()] == []


@pytest.mark.parametrize("page", CRITERIA, ids=lambda page: page.stem)
def test_a_page_of_a_criterion_has_a_figure_two_recipes_and_an_example(page: Path) -> None:
    assert f"../figures/{page.stem}.svg" in links(page)
    assert len(blocks(page, "toml")) == 2
    assert len(blocks(page, "python")) == 1


@pytest.mark.parametrize("recipe", cases("toml"))
def test_recipes_of_the_pages_load(recipe: str, tmp_path: Path) -> None:
    """Pasted beside tiny.toml; only uniform leaves the parent's schedule without effect."""
    shutil.copy(ROOT / "recipes" / "tiny.toml", tmp_path)
    file = tmp_path / "pasted.toml"
    file.write_text(recipe)
    loaded = load_recipe(file)
    unread = 'credit.schedule has no effect under allocation = "uniform"'
    uniform = loaded.recipe.credit.allocation == "uniform"
    assert loaded.warnings == ((unread,) if uniform else ())
    assert loaded.recipe != load_recipe(tmp_path / "tiny.toml").recipe


@pytest.mark.parametrize(
    "page", [page for page in CRITERIA if page.stem != "uniform"], ids=lambda page: page.stem
)
def test_a_page_has_its_criterion_static_and_scheduled(page: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "recipes" / "tiny.toml", tmp_path)
    moving = []
    for block in blocks(page, "toml"):
        (tmp_path / "pasted.toml").write_text(block)
        credit = load_recipe(tmp_path / "pasted.toml").recipe.credit
        assert page.stem.replace("-", "_") in credit.allocations
        moving.append(moves(credit.schedule))
    assert sorted(moving) == [False, True]


@pytest.mark.parametrize("example", cases("python"))
def test_examples_print_what_the_comments_say(example: str) -> None:
    promised = re.findall(r"^print\(.*\)  +# (.*)$", example, re.MULTILINE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(example, {})
    assert promised
    assert out.getvalue().splitlines() == promised


def has_key(model: type[BaseModel], path: list[str]) -> bool:
    """Whether a dotted key leads through the tables of a recipe, unions and lists included."""
    field = model.model_fields.get(path[0])
    if field is None:
        return False
    if len(path) == 1:
        return True
    waiting: list[Any] = [field.annotation]
    while waiting:
        form = waiting.pop()
        if isinstance(form, type) and issubclass(form, BaseModel) and has_key(form, path[1:]):
            return True
        waiting += typing.get_args(form)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_mentions_no_key_that_a_recipe_does_not_have(page: Path) -> None:
    """`table.key`, whose table is one of a recipe's, and `[table.key]`."""
    tables = "|".join(Recipe.model_fields)
    pattern = re.compile(rf"\[?((?:{tables})(?:\.\w+)+)")
    keys = [found[1] for word in words(page) if (found := pattern.match(word))]
    assert [key for key in keys if not has_key(Recipe, key.split("."))] == []


def test_a_key_that_does_not_exist_is_found_out() -> None:
    assert has_key(Recipe, ["credit", "schedule", "gamma"])
    assert has_key(Recipe, ["credit", "forking_tokens", "magnitude"])
    assert not has_key(Recipe, ["credit", "schedule", "gama"])
    assert not has_key(Recipe, ["credit", "forking"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_mentions_no_metric_that_a_step_does_not_log(page: Path) -> None:
    """Those that a page can name in full: their names stand in the code as they are logged."""
    code = (ROOT / "src/tpcli/train/measure.py").read_text()
    metrics = [
        w for w in words(page) if re.fullmatch(r"(credit|schedule|mass|reward|length)/\w+", w)
    ]
    assert [name for name in metrics if f'"{name}"' not in code] == []


@pytest.mark.parametrize(
    ("page", "one"),
    [("evaluation.md", "verifiers.md"), ("comparing.md", "examples/tiny-schedules.html")],
)
def test_what_a_page_of_the_docs_links_to_exists(page: str, one: str) -> None:
    found = links(ROOT / "docs" / page)
    assert one in found
    assert [link for link in found if not (ROOT / "docs" / link).is_file()] == []


def test_commands_of_the_page_on_comparing_take_the_flags_they_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    typed = re.findall(r"^(?:\$ )?tpcli (\w+)([^#\n]*)", text, flags=re.MULTILINE)
    assert len(typed) >= 8
    for command, rest in typed:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = capsys.readouterr().out
        assert [flag for flag in re.findall(r"--[a-z-]+", rest) if f"{flag} " not in known] == []


def test_the_grid_on_the_page_is_that_of_the_report() -> None:
    """Every value by seed stands in the report, with the digits that the page leaves out."""
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    report = (ROOT / "docs" / "examples" / "tiny-schedules.html").read_text(encoding="utf-8")
    shown = [float(value) for value in re.findall(r"✓(\.?\d+)", page)]
    told = [float(value) for value in re.findall(r">(\d(?:\.\d+)?)</td>", report)]
    assert len(shown) == 15
    assert all(any(abs(a - b) < 6e-4 for b in told) for a in shown)


def test_benchmarks_of_the_page_on_evaluation_load(tmp_path: Path) -> None:
    """The one that is printed, with rows of its shape, and the one that is linked."""
    page = ROOT / "docs" / "evaluation.md"
    [declared] = blocks(page, "toml")
    (tmp_path / "ours.toml").write_text(declared)
    (tmp_path / "geometry.jsonl").write_text('{"problem": "Area?", "solution": "\\\\frac{1}{2}"}\n')
    [item] = load(read(tmp_path / "ours.toml"), seed=0).items
    assert item.gold == "\\frac{1}{2}"
    linked = [link for link in links(page) if link.endswith(".toml")]
    assert [len(load(read(page.parent / link), seed=0).items) for link in linked] == [26]


def test_figures_are_those_that_the_pages_show() -> None:
    shown = {Path(link).stem for page in PAGES for link in links(page) if link.endswith(".svg")}
    assert shown == {path.stem for path in FIGURES.glob("*.svg")} == set(figures().FIGURES)
    assert {path.suffix for path in FIGURES.iterdir()} == {".svg"}
    assert max(path.stat().st_size for path in FIGURES.iterdir()) < 60_000


def test_figures_are_up_to_date(tmp_path: Path) -> None:
    """Under the matplotlib that drew them; another may place things otherwise. A processor may
    round otherwise: coordinates may differ by a hundredth, pixels by a level."""
    drawn = figures().draw(tmp_path)
    assert {path.name for path in drawn} == {path.name for path in FIGURES.glob("*.svg")}
    for path in drawn:
        kept = (FIGURES / path.name).read_text()
        if f"Matplotlib v{matplotlib.__version__}," in kept:
            here, there = drawing(path.read_text()), drawing(kept)
            assert here[0] == there[0], "run python docs/figures.py"
            assert here[1] == pytest.approx(there[1], abs=0.01), "run python docs/figures.py"
            assert here[2] == pytest.approx(there[2], abs=1), "run python docs/figures.py"
