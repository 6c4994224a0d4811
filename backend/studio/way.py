"""What is known about the way to Label Studio, in words, at the start of a process."""

from backend.studio.client import LabelStudio, LabelStudioError
from lasagna.settings import Settings


def check_label_studio(settings: Settings) -> str:
    """What is known about the way to Label Studio, in words, for the start of a process."""
    url, token = settings.label_studio_url, settings.label_studio_token
    if not url:
        said = "Label Studio: its address and token come with /setup"
        if token:
            said += (
                "; LASAGNA_LABEL_STUDIO_TOKEN is set but LASAGNA_LABEL_STUDIO_URL is not: a token is only sent to an "
                "address that you configured, so it is not used"
            )
        return said
    try:
        return f"Label Studio: {url}, {LabelStudio(url, token, timeout=5.0).check()}"
    except LabelStudioError as error:
        return f"Label Studio: {error}"
