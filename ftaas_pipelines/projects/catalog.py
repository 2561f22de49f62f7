"""Finding the projects under FTAAS_PROJECTS and reading them, each with its folder."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem, raise_all
from ftaas_pipelines.projects import data_files, yaml_lines
from ftaas_pipelines.projects.policy import PlatformPolicy, conflicts
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Project

FILE = "project.yaml"
NO_DATA = data_files.NO_DATA


@dataclass(frozen=True)
class Loaded:
    """A project with the folder it stands in."""

    project: Project
    folder: Path

    @property
    def name(self) -> str:
        return self.project.name

    def path(self, relative: str) -> Path:
        """A path of the YAML made absolute: relative ones count from the project folder."""
        return (self.folder / Path(relative).expanduser()).resolve()


def files(root: Path) -> list[Path]:
    """The `project.yaml` files under the root, in order.

    Raises:
        InputInvalid: the root is not a folder.
    """
    if not root.is_dir():
        raise InputInvalid("is not a folder", "FTAAS_PROJECTS", str(root), "create it or set FTAAS_PROJECTS")
    return sorted(path for path in root.glob(f"*/{FILE}") if not path.parent.name.startswith("."))


def read(path: Path, policy: PlatformPolicy) -> Loaded:
    """Read one project and hold it against the policy and its own files.

    Raises:
        InputInvalid: with every problem found.
        Refused: all that stands against it is a policy.
    """
    project, lines = yaml_lines.parse(path, Project)
    loaded = Loaded(project, path.parent.resolve())
    problems = conflicts(policy, project, path, lines)
    problems += _misplaced(loaded, path, lines)
    raise_all(problems)
    return loaded


def _misplaced(loaded: Loaded, path: Path, lines: yaml_lines.Lines) -> list[Problem]:
    """What is wrong with the files that the YAML names, each at its line. Remote places are not asked."""
    dataset = loaded.project.dataset
    named: dict[tuple[str | int, ...], str] = {
        ("dataset", "sources", i, "path"): source.path or ""
        for i, source in enumerate(dataset.sources)
        if source.in_place
    }
    for i, benchmark in enumerate(dataset.duplicates.benchmarks):
        named["dataset", "duplicates", "benchmarks", i] = benchmark
    problems: list[Problem] = []
    for place, name in named.items():
        try:
            data_files.find(loaded.folder, name)
        except InputInvalid as error:
            where = f"{path}:{yaml_lines.line_of(lines, place)}"
            for p in error.problems:
                got = name if p.what == NO_DATA else f"{name}: {p.where}{p.got and ' -> '}{p.got}"
                problems.append(Problem(p.what, where, got, p.do))
    return problems


def read_all(root: Path, policy_path: Path) -> dict[Path, Loaded | list[Problem]]:
    """Each `project.yaml` under the root, as a project or as what is wrong with it.

    Two projects of one name are both wrong.

    Raises:
        InputInvalid: the projects folder or the policy itself cannot be read.
    """
    policy = load_policy(policy_path)
    found: dict[Path, Loaded | list[Problem]] = {}
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in files(root):
        try:
            loaded = read(path, policy)
        except FtaasError as error:
            found[path] = error.problems
        else:
            found[path] = loaded
            by_name[loaded.name].append(path)
    for name, same in by_name.items():
        if len(same) > 1:
            where = ", ".join(str(path) for path in same)
            twice = Problem(f"{len(same)} projects are named '{name}'", where, do="give each its own name")
            found.update({path: [twice] for path in same})
    return found


def load_all(root: Path, policy_path: Path) -> tuple[list[Loaded], list[Problem]]:
    """Every project that is right, and the problems of those that are not.

    One broken file never hides the other projects; two projects of one name are both left out.

    Raises:
        InputInvalid: the projects folder or the policy itself cannot be read.
    """
    found = read_all(root, policy_path).values()
    problems = [problem for one in found if isinstance(one, list) for problem in one]
    return [one for one in found if isinstance(one, Loaded)], list(dict.fromkeys(problems))


def load_one(root: Path, policy_path: Path, name: str) -> Loaded:
    """The project of that name.

    Raises:
        InputInvalid: it is not there, or it or its name-sake is wrong.
        Refused: all that stands against it is a policy.
    """
    found = read_all(root, policy_path)
    for path, one in found.items():
        if isinstance(one, Loaded) and one.name == name:
            return one
        if isinstance(one, list) and (path.parent.name == name or any(f"'{name}'" in p.what for p in one)):
            raise_all(one)
    known = ", ".join(one.name for one in found.values() if isinstance(one, Loaded)) or "none"
    broken = sum(isinstance(one, list) for one in found.values())
    do = f"known: {known}" + (f"; {broken} more have errors: `ftaas project validate`" if broken else "")
    raise InputInvalid("there is no project of this name", str(root), name, do)
