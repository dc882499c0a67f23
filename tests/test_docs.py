"""The texts keep up with the code: links resolve, commands parse, examples run, named files and names exist."""

import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hpdlf.hwprofiles import load_profile
from hpdlf.models.plan import load_recipe
from hpdlf.models.program import (
    Buffer,
    Content,
    Group,
    Instruction,
    Kind,
    Mesh,
    Phase,
    Program,
    Role,
    Scope,
    Task,
    check,
    dependencies,
)
from hpdlf.sim.engine import replay

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ROOMS = ("exec", "experiments", "hwprofiles", "models", "sim", "tests", "docs")
# Named by the guide as what a later feature will add.
FUTURE = {
    "find_NAME_meters", "_NAME_step", "contingencies", "lower_recovery", "sharding_spec", "shrink",
}  # fmt: skip


class Block(NamedTuple):
    """A fenced block: its language, its lines, where it begins, and the line of text before it."""

    language: str
    text: str
    line: int
    before: str


def blocks(document: Path, *languages: str) -> list[Block]:
    """The document's fenced blocks in the given languages; all if none is given."""
    found: list[Block] = []
    lines = document.read_text(encoding="utf-8").splitlines()
    start, indent, before = None, 0, ""
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            if start is None:
                start, indent = number, len(line) - len(line.lstrip())
            else:
                language = lines[start].strip().removeprefix("```")
                body = "\n".join(text[indent:] for text in lines[start + 1 : number])
                found.append(Block(language, body + "\n", start + 1, before))
                start = None
        elif start is None and line.strip():
            before = line
    assert start is None, f"{document.name}: the block of line {start} is never closed"
    return [b for b in found if not languages or b.language in languages]


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^[ ]*```.*?^[ ]*```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub names them."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()) for h in headings)
    return {h.strip().replace(" ", "-") if not h.endswith(" ") else h.replace(" ", "-") for h in plain}


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_resolve(document: Path) -> None:
    text = prose(document)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path.replace("\\", "")).resolve() if path else document
        missing = not file.exists() or not file.is_relative_to(ROOT)
        if missing or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, f"{document.name}: {broken}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_files_that_are_named_exist(document: Path) -> None:
    wrong = []
    for found in re.finditer(r"(\w+\s)?`([\w./-]+\.(?:py|toml|svg|md))`", prose(document)):
        before, path = found.groups()
        if path.split("/")[0] in ROOMS and (before or "").strip() != "new" and not (ROOT / path).is_file():
            wrong.append(path)
    assert not wrong, f"{document.name}: {wrong}"


@cache
def _source() -> str:
    files = [f for room in ROOMS[:5] for f in (ROOT / room).rglob("*.py")]
    return "\n".join(f.read_text(encoding="utf-8") for f in [*files, *ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")])


def test_names_in_the_contributor_guide_exist() -> None:
    code = re.findall(r"`([A-Za-z_][\w.]*)`", prose(ROOT / "CONTRIBUTING.md"))
    words = {part for name in code if not name.endswith((".py", ".md")) for part in name.split(".")}
    looks_like_code = {w for w in words if "_" in w.strip("_") or w.startswith("_") or re.fullmatch(r"[A-Z]\w*[a-z]\w*", w)}
    assert not {w for w in looks_like_code - FUTURE if not re.search(rf"(?:\b|(?=_)){re.escape(w)}\b", _source())}


def _house() -> dict[str, tuple[str, ...] | None]:
    """Which rooms each room may import from, by the guide's table; None: any."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The house")[1].split("\n## ")[0]
    rooms: dict[str, tuple[str, ...] | None] = {}
    for row in re.findall(r"^\| `([\w/.]+)`.*\| (.*) \|$", section, flags=re.MULTILINE):
        allowed = tuple(re.findall(r"`([\w/]+)`", row[1].partition("never")[0]))
        rooms[row[0].strip("/").removesuffix(".py")] = None if row[1].startswith("everything") else (*allowed, "errors")
    return rooms


def _room(parts: Sequence[str], rooms: Iterable[str]) -> str:
    """The room that a module, by the parts of its path, lies in: the longest name that fits."""
    path = "/".join(parts)
    return max((r for r in rooms if path == r or path.startswith(f"{r}/")), key=len, default=parts[0] if parts else "")


def test_rooms_import_what_the_guide_says() -> None:
    house = _house()
    assert {"hwprofiles", "models/onnxpp", "models/trace", "sim", "exec", "experiments"} <= set(house)
    wrong = []
    for file in sorted(f for folder in ROOMS[:5] for f in (ROOT / folder).rglob("*.py")):
        here = file.relative_to(ROOT).with_suffix("").parts
        allowed = house.get(_room(here, house), ())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            target = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            there = _room([t for t in target if t], house)
            own = there in ("", _room(here, house))  # "": the version of the package itself
            if allowed is not None and not own and not any(f"{there}/".startswith(f"{a}/") for a in allowed):
                wrong.append(f"{'/'.join(here)} imports {there}")
    assert not wrong, "\n".join(wrong)


# --- commands ----------------------------------------------------------------------------------------------------------


def _command_lines(document: Path) -> Iterator[tuple[int, str]]:
    """Every `hpdlf ...` of the document's shell blocks, continuation lines joined."""
    for block in blocks(document, "sh", "bash", "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            text = line.strip()
            if block.language == "console" and not text.startswith("$ "):
                continue
            found = re.match(r"(?:\$ )?(?:(?:srun|mpiexec|env|[A-Z_]+=)\S*(?: \S+)*? )?hpdlf (.*)", text)
            if found:
                yield block.line, found[1]


def _root_command() -> Any:
    from typer.main import get_command

    from hpdlf.__main__ import app

    return get_command(app)


def _find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` begin with, and the words that are left."""
    command = _root_command()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"hpdlf has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_command_lines_parse(document: Path) -> None:
    wrong = []
    for line, text in _command_lines(document):
        words = shlex.split(text, comments=True)
        for stop in ("|", ">", "2>", "&&", "&", ";"):
            words = words[: words.index(stop)] if stop in words else words
        try:
            command, rest = _find(words)
            if "--help" not in rest and "--version" not in rest:
                command.make_context(command.name, list(rest))
        except Exception as error:
            wrong.append(f"line {line}: hpdlf {text}: {error}")
    assert not wrong, f"{document.name}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_sentences_have_the_options_they_name(document: Path) -> None:
    wrong = []
    for text in re.findall(r"`hpdlf ([a-z][^`]*)`", document.read_text(encoding="utf-8")):
        words = text.split()
        try:
            command, rest = _find(words)
        except AssertionError as error:
            wrong.append(f"hpdlf {text}: {error}")
            continue
        known = {option for p in command.params for option in p.opts} | {"--help", "--debug"}
        wrong += [f"hpdlf {text}: no {word}" for word in rest if re.fullmatch(r"--?[a-z][a-z-]*", word) and word not in known]
    assert not wrong, f"{document.name}:\n" + "\n".join(wrong)


def test_make_targets_and_modules_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets, document.name
        for module in re.findall(r"python -m (hpdlf[\w.]*)", text):
            assert find_spec(module), f"{document.name}: {module}"


# --- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks in one namespace, one after the other, as in a notebook; `<!-- not run: why -->` before a block leaves it out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "observations.duckdb"))
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path / "profiles"))
    namespace: dict[str, Any] = {}
    ran = 0
    for block in blocks(ROOT / "README.md", "python"):
        code = compile(block.text, f"README.md, block of line {block.line}", "exec")
        if not block.before.startswith("<!-- not run:"):
            exec(code, namespace)
            ran += 1
    assert ran


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_python_compiles_and_tables_load(document: Path, tmp_path: Path) -> None:
    for block in blocks(document, "python", "toml", "json"):
        origin = f"{document.name}, block of line {block.line}"
        if block.language == "python":
            compile(block.text, origin, "exec")
        elif block.language == "json":
            json.loads(block.text)
        elif 'profile = "' in block.text:
            (tmp_path / "profile.toml").write_text(block.text, encoding="utf-8")
            load_profile(tmp_path / "profile.toml")
        else:
            (tmp_path / "recipe.toml").write_text(block.text, encoding="utf-8")
            load_recipe(tmp_path / "recipe.toml")


KEYWORDS = ("on", "phase", "group", "every", "reads", "writes", "accumulates", "frees", "after")
LISTS = ("reads", "writes", "accumulates", "frees", "after")


def _instruction(line: str) -> Instruction:
    """One line of a listing: id, kind, then keywords with their values."""
    name, kind, *words = line.split()
    said: dict[str, list[str]] = {}
    keyword = ""
    for word in words:
        if word in KEYWORDS:
            keyword = word
            assert said.setdefault(keyword, []) == [], f"{line}: {keyword} twice"
        else:
            said[keyword].append(word)
    group = Group(axes=tuple(said["group"])) if "group" in said else None
    assert (group is not None) == (Kind(kind).is_collective or Kind(kind).is_one_sided), line
    lists: dict[str, Any] = {k: tuple(said.get(k, ())) for k in LISTS}
    return Instruction(
        id=name,
        kind=Kind(kind),
        stream=said.get("on", ["compute"])[0],
        phase=Phase(said.get("phase", ["host"])[0]),
        group=group,
        every=int(said.get("every", ["1"])[0]),
        message=name,
        **lists,
    )


def _program(text: str) -> Program:
    """The role that a listing of the contributor guide describes, played by every rank of a small mesh."""
    buffers: list[Buffer] = []
    instructions: list[Instruction] = []
    for line in filter(str.strip, text.splitlines()):
        scope, colon, names = line.partition(":")
        if colon:
            buffers += [
                Buffer(name=n, content=Content.WORKSPACE, scope=Scope(scope), nbytes=8) for n in names.split()
            ]
        else:
            instructions.append(_instruction(line))
    per_microbatch = {b.name for b in buffers if b.scope is Scope.MICROBATCH}

    def task(i: Instruction) -> Task:
        touched = {*i.reads, *i.writes, *i.accumulates, *i.frees}
        return Task(i.id, 0 if touched & per_microbatch else None)

    role = Role.in_order(
        name="all",
        coordinates={},
        buffers=tuple(buffers),
        instructions=tuple(instructions),
        order=tuple(map(task, instructions)),
    )
    mesh = Mesh(axes={"pipeline": 1, "data": 2, "tensor": 2})
    return Program(
        name="listing", mesh=mesh, microbatches=1, microbatch_samples=1, loss_weight=1.0, roles=(role,), segments={}
    )


LISTINGS = blocks(ROOT / "CONTRIBUTING.md", "program")


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda b: f"line {b.line}")
def test_listings_of_the_contributor_guide_are_programs(listing: Block) -> None:
    program = _program(listing.text)
    (role,) = program.roles
    assert check(program) == []
    assert all(i.kind.communicates or i.group is None for i in role.instructions)
    used = {n for i in role.instructions for n in (*i.reads, *i.writes, *i.accumulates, *i.frees)}
    assert used == set(role.buffer), "a buffer is declared and not used"
    seconds = {rank: {i.id: 1.0 for i in role.instructions} for rank in range(program.mesh.size)}
    events = replay(program, seconds, steps=8)
    runs = sum(i.runs_in(step) for step in range(8) for i in role.instructions)
    assert len(events) == runs * program.mesh.size
    assert len(dependencies(role)) == len(role.order)


# --- what does not belong in a text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [*DOCUMENTS, *(ROOT / "docs").glob("*.svg")], ids=named)
def test_no_paths_of_a_machine_and_nothing_unfinished(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.~$}-])/(?:home|root|work|tmp|Users|mnt)/\w+", text)
    assert not re.findall(r"\b(?:TO" r"DO|FIX" r"ME|X{3})\b|[A-Z]+_OUT" r"PUT", text)
