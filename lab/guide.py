"""The pictures of docs/first-project.md: a first project in a real Label Studio, made as a newcomer makes it.

    python -m lab.guide docs/pictures

Label Studio, `lasagna serve` and `lasagna worker` are started with empty folders, and a real browser does what the page
says: it uploads the demo's photos, names the labels, connects the model, retrieves predictions and opens a photo. So a
step of the page that Label Studio no longer has stops this command.
"""

import argparse
import io
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from backend.demo.local_label_studio import LocalLabelStudio
from backend.demo.photos import demo_photos
from backend.queue.own_redis import release_redis
from backend.queue.services import Service, free_port, port_is_free
from lab.editor import Editor, open_chromium
from lasagna.settings import Settings

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

LABELS = ("person", "cat", "cup", "motorcycle", "building", "tree", "road", "sky")
_SHOWN = 3
"""The photo that is opened: the motorcycle, which has the most regions."""
_SIZE = (1280, 860)
_COLOURS = 256
"""Colours of a picture's palette, with which a screenshot takes a third of the bytes."""


class Guide:
    """The browser of somebody who follows the page, and the folder for the pictures."""

    def __init__(self, editor: Editor, pictures: Path) -> None:
        self.editor, self.browser, self.pictures = editor, editor.browser, pictures
        self._wait = WebDriverWait(editor.browser, 60)

    def make_project(self) -> int:
        """Projects > Create Project, with photos and labels; returns the project's number."""
        self.browser.get(f"{self.editor.url}/projects/")
        self._button("Create Project").click()
        self._find("//input[@name='name']").send_keys(Keys.CONTROL + "a", "First project")
        self._text("Data Import").click()
        self._text("Drag & drop files here")
        self.editor.settle()  # a file that is given before the page listens is lost
        photos = "\n".join(str(photo) for photo in demo_photos())
        self._find("//input[@type='file']", visible=False).send_keys(photos)
        self._text("astronaut.png")
        self._text("Labeling Setup").click()
        self._text("Semantic Segmentation with Masks").click()
        self._find("//textarea").send_keys("\n".join(LABELS))
        self._button("Add").click()
        for name in ("Airplane", "Car"):
            self._find(f"//li[.='{name}']").click()
            self.browser.execute_script("arguments[0].click()", self._find(f"//li[.='{name}']//button", visible=False))
        self._picture("labels")
        self._button("Save").click()
        self._wait.until(lambda browser: "/data" in browser.current_url)
        return int(self.browser.current_url.split("/projects/")[1].split("/")[0])

    def connect(self, project: int, address: str) -> None:
        """Settings > Model > Connect Model."""
        self.browser.get(f"{self.editor.url}/projects/{project}/settings/ml")
        self._button("Connect Model").click()
        self._find("//input[@name='title']").send_keys("LaSagnA Assist")
        self._find("//input[@name='url']").send_keys(address)
        self._picture("connect")
        self._button("Validate and Save").click()
        self._text("Connected")

    def retrieve(self, project: int) -> None:
        """The data manager: all tasks, Retrieve Predictions."""
        self.browser.get(f"{self.editor.url}/projects/{project}/data")
        self._text("Label All Tasks")
        self.browser.execute_script("arguments[0].click()", self._find("//input[@type='checkbox']", visible=False))
        self._find(f"//button[contains(., '{len(demo_photos())} Tasks') and not(contains(., 'Label'))]").click()
        self._text("Retrieve Predictions")
        self._picture("retrieve")
        self._text("Retrieve Predictions").click()
        self._button("OK").click()
        self._text(f"Predictions: {len(demo_photos())}")

    def annotate(self, project: int, task: int) -> None:
        """Opens a photo: its annotation begins with the prediction."""
        self.browser.get(f"{self.editor.url}/projects/{project}/data?task={task}")
        self._button("Submit")
        self._wait.until(
            lambda browser: browser.execute_script(
                "const shown = window.Htx && Htx.annotationStore.selected;"
                "return !!shown && shown.type === 'annotation' && shown.regions.length > 0"
            )
        )
        self._picture("annotate")

    def _find(self, path: str, *, visible: bool = True) -> "WebElement":
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.common.by import By

        def found(_: object) -> "WebElement | None":
            try:
                elements = self.browser.find_elements(By.XPATH, path)
                return next((one for one in elements if one.is_displayed() or not visible), None)
            except StaleElementReferenceException:
                return None

        element = self._wait.until(found, f"there is nothing at {path}")
        if element is None:
            raise AssertionError(path)
        return element

    def _button(self, words: str) -> "WebElement":
        return self._find(f"//button[normalize-space(.)='{words}']")

    def _text(self, words: str) -> "WebElement":
        return self._find(f"//*[normalize-space(text())='{words}' or normalize-space(.)='{words}' and not(*)]")

    def _picture(self, name: str) -> None:
        self.editor.settle()
        picture = Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB").quantize(_COLOURS)
        target = self.pictures / f"{name}.png"
        picture.save(target, optimize=True)
        print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    given.pictures.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = Settings.load(state_dir=str(folder / "state"))
        label_studio = stack.enter_context(LocalLabelStudio(settings, folder / "label-studio"))
        port = 9090 if port_is_free(9090) else free_port()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LASAGNA_")} | {
            "LASAGNA_STATE_DIR": str(folder / "state"),
            "LASAGNA_PORT": str(port),
        }
        stack.callback(release_redis, settings)
        for name in ("serve", "worker"):
            program = [sys.executable, "-m", "lasagna", name]
            service = Service(f"lasagna {name}", program, env=environ, log=folder / f"{name}.log")
            stack.callback(service.stop)
        service.wait_until(lambda: "waiting for jobs" in (folder / "worker.log").read_text(), 300)
        browser = open_chromium(folder / "chromium")
        stack.callback(browser.quit)
        browser.set_window_size(*_SIZE)
        guide = Guide(Editor(browser, label_studio.wait()), given.pictures)
        project = guide.make_project()
        guide.connect(project, f"http://127.0.0.1:{port}")
        guide.retrieve(project)
        tasks = [task.id for task in label_studio.api().tasks(project)]
        guide.annotate(project, tasks[_SHOWN])


if __name__ == "__main__":
    main()
