"""How commands name a project: by its number, with the address of its Label Studio where several have that number."""

from typing import TYPE_CHECKING, Any

import click

from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.studio.client import LabelStudio


class ProjectName(click.ParamType):
    """The number of a project, or its uid (12.1698765432), which tells projects of one number apart."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        from backend.studio.project_id import is_project_name

        if not is_project_name(str(value)):
            self.fail(f"{value!r} is not the number of a project in Label Studio, such as 12", param, context)
        return str(value)


server_option = click.option(
    "--server", metavar="ADDRESS", default="", help="Its Label Studio, where several have a project of this number."
)


def find_project(settings: Settings, store: Any, name: str, server: str) -> str:
    """The uid of the project that is meant; what an earlier release kept by its number is given to it.

    Args:
        store: The records in Redis; None: only the registry's files are looked at.

    Raises:
        ConfigError: Several Label Studios have a project of this number, and `server` names none of them.
    """
    from backend.registry.known_projects import KnownProjects
    from backend.registry.takeover import take_over
    from lasagna.settings import registry_folder

    if store is not None:
        take_over(registry_folder(settings), store)
    return KnownProjects.from_settings(settings, store).resolve(name, server)


def uid_there(settings: Settings, label_studio: "LabelStudio", project: int) -> str:
    """The uid of a project, as its Label Studio tells it; what an earlier release kept by its number is given to it,
    also where no process of ours was started since.

    Raises:
        LabelStudioError: Label Studio cannot be reached or does not know the project.
        ServiceError: Something is kept by the number, and Redis, which may know whose it is, cannot be reached.
    """
    from backend.commands.redis import open_store, redis_in_words
    from backend.registry.takeover import is_left, take_over
    from backend.studio.project_id import number_of, project_uid
    from lasagna.settings import registry_folder

    uid, registry = project_uid(label_studio.project(project)), registry_folder(settings)
    if is_left(registry, number_of(uid)):
        with redis_in_words():
            take_over(registry, open_store(settings), uid)
    return uid
