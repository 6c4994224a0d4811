"""What the model that serves a project cannot do, and whether the project can be fine-tuned. No torch, no weights.

What always holds: a project's own version is judged by its folder, any other by what the worker published of its model;
where neither is known, nothing is said to be missing.
"""

from backend.queue.store import Store
from backend.registry.registry import Registry
from backend.studio.project_id import number_of
from lasagna.checkpoint.architectures import BUILT_IN, OURS, architecture_of, model_type
from lasagna.contract.model import WORDS, Abilities


def cannot(project: str, registry: Registry, store: Store) -> tuple[str, ...]:
    """What the model of a project (uid) cannot do, in words.

    Raises:
        RegistryError: Its version is not in the registry any more.
    """
    champion = registry.champion(project)
    if champion is not None and (kind := model_type(champion.checkpoint)) != OURS:
        return Abilities().missing if kind in BUILT_IN else ()
    of_worker = tuple((store.model() or {}).get("cannot", ()))
    if champion is not None and WORDS["training"] in of_worker:  # another maker's, which does not serve this project
        return ()
    return of_worker


def why_not_trained(project: str, registry: Registry, store: Store) -> str:
    """Why a project (uid) is not fine-tuned, and what to do; "" where it can be.

    Raises:
        RegistryError: As `cannot`.
    """
    champion = registry.champion(project)
    if champion is not None:
        version = champion.id if architecture_of(champion.checkpoint) is not None else ""
    else:
        model = store.model() or {}
        version = str(model.get("version")) if WORDS["training"] in model.get("cannot", ()) else ""
    if not version:
        return ""
    return (
        f"{version} serves the project. It is another maker's model, and is not fine-tuned here. Corrections stay in "
        "Label Studio and are counted. To train on them, let LaSagnA serve the project: `lasagna models serve "
        f"{number_of(project)} nano`"
    )
