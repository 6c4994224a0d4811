"""Where a project's instant heads lie, and which one it uses now. Files only, no torch: the web process reads them too.

    REGISTRY/heads/P/VERSION/     `lasagna.instant.store.HeadStore` of the project with uid P beside a version

What always holds: a head belongs to one version, so that after a promotion or a rollback of the version the heads of
that version count, and those of the other one wait; the store's pointer is one file that is replaced as a whole, so
every process that shares the registry sees the same head.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.registry.records import project_key
from backend.studio.project_id import number_of
from lasagna.errors import RegistryError

FOLDER = "heads"
_FILE = re.compile(r"(h(\d+))-[0-9a-f]+\.safetensors")


@dataclass(frozen=True)
class HeadState:
    """The head that a project uses.

    Attributes:
        version: The version that it stands beside, without a head.
        number: Of the head.
        file: Name of its file in the store's `heads`.
        decision: What the gate said (`lasagna.instant.gate.Decision.to_dict`).
    """

    version: str
    number: int
    file: str
    decision: dict[str, Any]

    @property
    def full_version(self) -> str:
        """What predictions carry."""
        return f"{self.version}+h{self.number}"

    @property
    def words(self) -> str:
        return f"h{self.number}: {self.decision.get('reason', '')}"


class ProjectHeads:
    """The heads of every project of a registry.

    Args:
        registry: The registry's folder.
    """

    def __init__(self, registry: Path) -> None:
        self._root = registry / FOLDER

    def folder(self, project: str, version: str) -> Path:
        """The store of a project beside a version; it need not exist yet."""
        if not re.fullmatch(r"\w[\w.-]*", version):
            raise RegistryError(f"{version!r} is no name of a version")
        return self._root / project_key(project) / version

    def versions(self, project: str) -> list[str]:
        """The versions beside which a project has corrections or heads."""
        folder = self._root / project_key(project)
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def projects(self) -> list[str]:
        """Uids of the projects that have corrections or heads."""
        folders = self._root.iterdir() if self._root.is_dir() else ()
        return sorted((path.name for path in folders if path.is_dir()), key=lambda name: (len(number_of(name)), name))

    def states(self, project: str) -> list[HeadState]:
        """The heads of a project, one beside each version that has any; the one that was changed last comes last."""
        found = []
        for version in self.versions(project):
            if (state := self.current(project, version)) is not None:
                changed = (self.folder(project, version) / "current.json").stat().st_mtime
                found.append((changed, state))
        return [state for _, state in sorted(found, key=lambda pair: pair[0])]

    def current(self, project: str, version: str) -> HeadState | None:
        """The head in use beside a version; None where there is none.

        Raises:
            RegistryError: The store is damaged.
        """
        if not version:
            return None
        folder = self.folder(project, version)
        pointer = folder / "current.json"
        try:
            file = str(json.loads(pointer.read_text(encoding="utf-8"))["head"])
            match = _FILE.fullmatch(file)
            if match is None:
                if not file:
                    return None
                raise ValueError(f"it names {file!r}")
            return HeadState(version, int(match[2]), file, dict(_notes(folder / "heads" / file)["decision"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"{pointer} cannot be read ({error}); remove {folder}: it is made again from Label Studio's annotations"
            ) from error

    def learnt(self, project: str, version: str, number: int) -> tuple[str, ...]:
        """The classes that a head answers beside a version: those that it has seen, where it serves; () where it is not
        kept any more, or draws nothing.

        Raises:
            RegistryError: Its file is damaged.
        """
        for path in (self.folder(project, version) / "heads").glob(f"h{number}-*.safetensors"):
            try:
                notes = _notes(path)
                return tuple(map(str, notes["names"])) if notes["decision"]["serves"] else ()
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RegistryError(f"{path} cannot be read ({error})") from error
        return ()

    def prune(self, project: str, keep: set[str]) -> list[str]:
        """Removes the stores beside versions that are not among `keep`; returns their names."""
        gone = [version for version in self.versions(project) if version not in keep]
        for version in gone:
            shutil.rmtree(self.folder(project, version), ignore_errors=True)
        return gone


def _notes(path: Path) -> dict[str, Any]:
    """What a head's file says of the head, from the header alone (safetensors: 8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(json.loads(header["__metadata__"]["head"]))
