"""Which projects there are, of which Label Studio, and which of them somebody means by a number.

    REGISTRY/servers.json       uid of a project -> the address of its Label Studio

Several Label Studios may use one backend, and each has a project 1. Whatever is kept of a project is kept by its uid
(`backend.studio.project_id`), which Label Studio itself sends with every request: it tells projects of one number
apart, and stays the same where a Label Studio gets another address. The address is what people tell them apart by.

What always holds: a number stands for a project only where one Label Studio has it; else the error names all of them,
and nothing is done. Of one Label Studio the project counts that was made last, since its numbers begin anew with a new
database.
"""

import fcntl
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from backend.queue.store import Store
from backend.studio.address import normalise_url
from backend.studio.project_id import check_project_name, made_at, number_of
from lasagna.errors import ConfigError
from lasagna.files import write_atomically
from lasagna.settings import Settings, hide_password, registry_folder

logger = logging.getLogger(__name__)

FOLDERS = (("projects", ".json"), ("labels", ".json"), ("heads", ""), ("snapshots", ""))
"""Where a registry keeps something of a project, and how the names there end that begin with its uid."""
SERVERS = "servers.json"


class KnownProject(NamedTuple):
    """A project; `server` is the address of its Label Studio, "" where that is not known."""

    uid: str
    server: str


class KnownProjects:
    """The projects of an installation.

    Args:
        registry: The registry's folder.
        store: The records in Redis, None where only the files are looked at.
        is_one_server: Whether all of them are of one Label Studio, whatever it calls itself (the setting
            `label_studio_url`).
    """

    def __init__(self, registry: Path, store: Store | None, *, is_one_server: bool = False) -> None:
        self._registry, self._store, self._is_one = registry, store, is_one_server
        self._noted: dict[str, str] = {}

    @classmethod
    def from_settings(cls, settings: Settings, store: Store | None) -> "KnownProjects":
        return cls(registry_folder(settings), store, is_one_server=bool(settings.label_studio_url))

    def note(self, uid: str, server: str) -> None:
        """Notes where a project is; what cannot be written is said in the log."""
        if not server or self._noted.get(uid) == server:
            return
        path = self._registry / SERVERS
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(f".{SERVERS}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._on_disk()
                if known.get(uid, server) != server and uid not in self._noted:
                    logger.warning(
                        "project %s is at %s now, and was at %s: right where Label Studio got another address; where "
                        "both are there, one is a copy of the other, and needs a backend of its own",
                        number_of(uid), hide_password(server), hide_password(known[uid]),
                    )  # fmt: skip
                if known.get(uid) != server:
                    write_atomically(path, json.dumps({**known, uid: server}, indent=0, sort_keys=True))
        except OSError as error:
            logger.warning("where project %s is cannot be noted in %s: %s", number_of(uid), path, error)
        self._noted[uid] = server

    def of(self, number: str) -> list[KnownProject]:
        """The projects of a number, one of each Label Studio; [] where its uid is not known.

        Raises:
            redis.RedisError: Redis is gone.
        """
        servers = {uid: server for uid, server in self._on_disk().items() if number_of(uid) == number}
        for folder, end in FOLDERS:
            names = ((self._registry / folder).glob(f"{number}.*{end}")) if number.isdigit() else ()
            for path in names:
                uid = path.name.removesuffix(end)
                if uid.partition(".")[2].isdigit():
                    servers.setdefault(uid, "")
        for uid in self._store.uids(number) if self._store is not None else ():
            server = self._store.project(uid).url if self._store is not None else ""
            servers[uid] = server or servers.get(uid, "")
        return self.living(servers)

    def living(self, servers: Mapping[str, str]) -> list[KnownProject]:
        """Of projects (uid -> server) those that are there: of one Label Studio and number that which was made last."""
        newest: dict[tuple[str, str], KnownProject] = {}
        for uid, server in sorted(servers.items(), key=lambda entry: made_at(entry[0])):
            newest[number_of(uid), "" if self._is_one else server] = KnownProject(uid, server)
        known = {number for number, server in newest if server}
        found = [each for (number, server), each in newest.items() if server or number not in known]
        return sorted(found, key=lambda each: (len(number_of(each.uid)), number_of(each.uid), each.server))

    def all(self, uids: Iterable[str] = ()) -> list[KnownProject]:
        """Every project that is there, of those that are known and further uids."""
        servers = self._on_disk()
        servers |= {uid: servers.get(uid, "") for uid in uids}
        for uid, project in self._store.known_projects().items() if self._store is not None else ():
            servers[uid] = project.url or servers.get(uid, "")
        return self.living(servers)

    def resolve(self, name: str, server: str = "") -> str:
        """The uid of a project, of its number; the number itself where nobody has told the uid. A uid is itself.

        Args:
            name: Number or uid.
            server: The address of its Label Studio, or its host; "": there is only one.

        Raises:
            ConfigError: Several Label Studios have the number and `server` names none, or it has none.
            redis.RedisError: Redis is gone.
        """
        if made_at(check_project_name(name)):
            return name
        found = self.of(name)
        chosen = [each for each in found if not server or _is_called(each.server, server)]
        if len(chosen) > 1:
            raise ConfigError(
                f"{len(chosen)} Label Studios have a project {name}: {_listed(chosen)}; say which one, with --server "
                f"ADDRESS or by the longer name, such as {chosen[0].uid}"
            )
        if not chosen and server and found:
            raise ConfigError(f"no project {name} of {server} is known here; known: {_listed(found)}")
        return chosen[0].uid if chosen else name

    def names(self, uids: Iterable[str]) -> dict[str, str]:
        """What people read of each project: its number, with its Label Studio where another one has that number too."""
        wanted = set(uids)
        servers = {**dict.fromkeys(wanted, ""), **dict(self.all(wanted))}
        places = Counter((number_of(uid), server) for uid, server in servers.items())
        numbers = Counter(number for number, _ in places.elements())
        found = {}
        for uid in wanted:
            number, server = number_of(uid), servers[uid]
            is_told = bool(server) and places[number, server] == 1
            found[uid] = number if numbers[number] == 1 else f"{number} of {hide_password(server)}" if is_told else uid
        return found

    def _on_disk(self) -> dict[str, str]:
        path = self._registry / SERVERS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s); it is made again as Label Studio connects", path, error)
            return {}
        return {str(uid): str(server) for uid, server in found.items()} if isinstance(found, dict) else {}


def _is_called(server: str, name: str) -> bool:
    """Whether an address, or a host with or without its port, names a server."""
    here = server.rpartition("@")[2] if "@" in server else server.partition("://")[2]
    try:
        return normalise_url(name) == server
    except ConfigError:
        return name in (here, here.partition("/")[0], here.partition("/")[0].rpartition(":")[0])


def _listed(found: Iterable[KnownProject]) -> str:
    return ", ".join(f"{each.uid} of {hide_password(each.server) or 'an unknown address'}" for each in found)
