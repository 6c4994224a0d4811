"""A version's figures and report in MLflow, where its own environment variables ask for it.

`MLFLOW_TRACKING_URI` switches it on; `MLFLOW_EXPERIMENT_NAME`, credentials and the rest are MLflow's. The package is
not among our dependencies: `pip install mlflow-skinny`, or the full one.
"""

import logging
import os

from backend.registry.figures import measured
from backend.registry.records import Version

logger = logging.getLogger(__name__)


def log_version(version: Version) -> bool:
    """Logs a version as one run: its figures, its report as artifacts, where it is from as tags.

    Returns whether that was asked for and worked. A tracking server that is gone is said and stops nothing.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return False
    try:
        import mlflow
    except ImportError:
        logger.warning("MLFLOW_TRACKING_URI is set, but MLflow is not installed: pip install mlflow-skinny")
        return False
    overall, classes = measured(version.metrics)
    figures = overall | {f"{k}/{_allowed(name)}": value for name, each in classes.items() for k, value in each.items()}
    tags = {"project": version.project, "parent": version.parent, "snapshot": version.snapshot}
    try:
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment(f"lasagna project {version.project}")
        with mlflow.start_run(run_name=version.id, tags=tags):
            mlflow.log_metrics(figures)
            for report in version.reports:
                mlflow.log_artifact(str(report))
    except Exception as error:  # of the network, the server, the store: whatever MLflow and its plug-ins raise
        logger.warning("version %s is not in MLflow: %s: %s", version.id, type(error).__name__, error)
        return False
    return True


def _allowed(name: str) -> str:
    """A name of a metric: MLflow takes letters, digits, and a few signs."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in name)
