"""A real Chromium in the real editor of Label Studio, for tests and for the pictures of the documents.

What always holds: the browser has no window, reaches 127.0.0.1 alone, and changes nothing in Label Studio but by what
a person could type and click.
"""

import io
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from lasagna.errors import ServiceError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from backend.demo.local_label_studio import LocalLabelStudio


def open_chromium(profile: Path) -> "Chrome":
    """The browser, 1500 x 1300; end it with `quit()`.

    Args:
        profile: A folder of its own.

    Raises:
        ServiceError: Chromium or chromedriver is not installed.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        raise ServiceError(
            "there is no Chromium with chromedriver: type "
            "`sudo apt-get install --no-install-recommends chromium chromium-driver fonts-dejavu-core`"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless",
        "--no-sandbox",  # Chromium refuses to run as root with it
        "--disable-gpu",
        "--disable-dev-shm-usage",  # /dev/shm is small in containers
        "--disable-quic",
        "--disable-sync",
        "--disable-component-update",
        "--disable-background-networking",
        "--no-first-run",
        "--force-device-scale-factor=1",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
        "--window-size=1500,1300",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    return browser


class Editor:
    """The browser, logged in to Label Studio."""

    def __init__(self, browser: "Chrome", label_studio: "LocalLabelStudio") -> None:
        from selenium.webdriver.common.by import By

        self.browser, self.url = browser, label_studio.url
        self._by, self._wait = By, WebDriverWait(browser, 90)
        browser.get(self.url + "/user/login/")
        if "/user/login" in browser.current_url:
            browser.find_element(By.NAME, "email").send_keys(label_studio.login.user)
            browser.find_element(By.NAME, "password").send_keys(label_studio.login.password)
            browser.find_element(By.CSS_SELECTOR, "form button[type=submit], button[aria-label='Log In']").click()
            self._wait.until(lambda _: "/user/login" not in browser.current_url)

    def open(self, project: int, task: int, prediction: int | None = None) -> list[Any]:
        """Opens a task, shows one of its predictions, and returns that one's regions: (type, labels, score).

        Args:
            project: Its project.
            task: The task.
            prediction: The prediction's number in Label Studio.  [default: the newest]
        """
        self.browser.get_log("browser")  # what earlier pages said
        self.browser.get(f"{self.url}/projects/{project}/data?task={task}")
        self._wait.until(
            lambda _: self.browser.execute_script(
                "return !!window.Htx && Htx.annotationStore.predictions.length > 0 && Htx.annotationStore.initialized"
            )
        )
        self.browser.execute_script(
            "const store = Htx.annotationStore, wanted = arguments[0];"
            "const found = wanted === null ? store.predictions.at(-1) : store.predictions.find(p => p.pk == wanted);"
            "store.selectPrediction(found.id)",
            prediction,
        )
        self._wait.until(lambda _: self._stage() is not None)
        self.settle()
        found: list[Any] = self.browser.execute_script(
            "return Htx.annotationStore.selected.regions.map(r => [r.type, r.labels || [], r.score])"
        )
        return found

    def ask(self, project: int, task: int, placeholder: str, question: str) -> None:
        """Opens a task, turns on Auto-Annotation, and types the question and Enter into the field."""
        self.browser.get_log("browser")
        self.browser.get(f"{self.url}/projects/{project}/data?task={task}")
        self._wait.until(lambda _: self._stage() is not None)
        self.settle()
        self.browser.find_element(self._by.XPATH, "//*[text()='Auto-Annotation']").click()
        self._wait.until(lambda _: self.browser.execute_script("return Htx.autoAnnotation"))
        field = self.browser.find_element(self._by.CSS_SELECTOR, f"[placeholder='{placeholder}']")
        field.send_keys(question + "\n")

    def work_on(self, project: int, task: int) -> list[Any]:
        """Opens a task to annotate it, as an annotator does, and returns the regions that it begins with (`regions`):
        Label Studio makes them of the prediction that the project shows."""
        self.browser.get_log("browser")
        self.browser.get(f"{self.url}/projects/{project}/data?task={task}")
        ready = "return !!window.Htx && Htx.annotationStore.initialized && Htx.annotationStore.selected?.type"
        self._wait.until(lambda _: self.browser.execute_script(ready) == "annotation" and self._stage() is not None)
        self.settle()
        return self.regions()

    def regions(self) -> list[Any]:
        """The regions of what is on the screen: (type, labels, image, page)."""
        found: list[Any] = self.browser.execute_script(
            "return Htx.annotationStore.selected.regions.map("
            "r => [r.type, r.labels || [], r.object.name, r.item_index ?? null])"
        )
        return found

    def results(self) -> list[dict[str, Any]]:
        """What would be submitted."""
        found: list[dict[str, Any]] = self.browser.execute_script(
            "return Htx.annotationStore.selected.serializeAnnotation()"
        )
        return found

    def choose(self, label: str) -> None:
        """Clicks on a label; where several controls have it, in the last one."""
        spans = self.browser.find_elements(self._by.XPATH, "//span[contains(@class, 'lsf-label_clickable')]")
        shown = [span for span in spans if span.is_displayed() and span.text.split("\n")[0].strip() == label]
        self._click(shown[-1])

    def take(self, tool: str) -> None:
        """Takes a tool up, by the name that the editor has for it ("BrushTool"), on every image that has it."""
        self.browser.execute_script(
            "for (const image of [...Htx.annotationStore.selected.names.values()].filter(t => t.type === 'image')) {"
            "const tools = image.getToolsManager();"
            "const found = tools.allTools().find(t => t.toolName === arguments[0]);"
            "if (found) tools.selectTool(found, true); }",
            tool,
        )

    def turn_page(self) -> None:
        """Goes to the next page of a task with several."""
        button = self.browser.find_elements(self._by.CSS_SELECTOR, "[class*='pagination__btn_arrow-right']")
        self._click(button[0])
        self._wait.until(lambda _: self._stage() is not None)
        self.settle()

    def drag(self, points: Sequence[tuple[float, float]], image: int = 0) -> None:
        """Drags the mouse over an image, from point to point in shares of its width and height as it is shown."""
        from selenium.webdriver.common.action_chains import ActionChains

        stage = self.browser.find_elements(self._by.CSS_SELECTOR, ".konvajs-content")[image]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
        # the stage is wider than an image that is turned, which begins in its corner
        x0, y0, width, height = self.browser.execute_script(
            "const stage = arguments[0], box = stage.getBoundingClientRect();"
            "const all = [...Htx.annotationStore.selected.names.values()].filter(tag => tag.type === 'image');"
            "const size = all.find(tag => tag.stageRef?.content === stage)?.canvasSize ?? box;"
            "return [box.x, box.y, size.width, size.height]",
            stage,
        )
        mouse = ActionChains(self.browser, duration=60)
        for number, (x, y) in enumerate(points):
            place = x0 + x * width, y0 + y * height
            mouse.w3c_actions.pointer_action.move_to_location(*map(round, place))
            if number == 0:
                mouse.click_and_hold()
        mouse.release().perform()
        time.sleep(0.5)

    def click(self, x: float, y: float, image: int = 0) -> None:
        """Clicks on an image, at a place as in `drag`."""
        self.drag([(x, y)], image)

    def submit(self) -> None:
        """Clicks on Submit and waits until Label Studio has it."""
        self._click(self.browser.find_element(self._by.XPATH, "//button[normalize-space()='Submit']"))
        self._wait.until(lambda _: self.browser.execute_script("return !!Htx.annotationStore.selected?.pk"))

    def picture(self, target: Path, height: int | None = None, width: int | None = None) -> None:
        """Keeps what is on the screen as a small PNG.

        Args:
            target: The file.
            height: Pixels of the window from the top.  [default: all]
            width: Of the picture.  [default: of the window]
        """
        shot = Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
        shot = shot.crop((0, 0, shot.width, height or shot.height))
        if width:
            shot.thumbnail((width, shot.height), Image.Resampling.LANCZOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shot.quantize(128).save(target, optimize=True)

    def _click(self, element: Any) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        time.sleep(0.3)

    def texts(self, name: str) -> list[str]:
        """What is in a text field of the annotation."""
        regions = self.browser.execute_script("return Htx.annotationStore.selected.serializeAnnotation()")
        return [text for region in regions if region["from_name"] == name for text in region["value"]["text"]]

    def image_pixels(self) -> NDArray[np.uint8]:
        """uint8 (h, w, 3): what is on the screen where the image is, regions included."""
        box = self.browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", self._stage())
        shot = Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
        left, top, right, bottom = (round(box[edge]) for edge in ("left", "top", "right", "bottom"))
        return np.asarray(shot.crop((left, top, right, bottom)))

    def errors(self) -> list[str]:
        """Errors in the browser's console, less those of addresses outside, which this browser cannot reach."""
        return [
            entry["message"]
            for entry in self.browser.get_log("browser")
            if entry["level"] == "SEVERE"
            and "ERR_NAME_NOT_RESOLVED" not in entry["message"]
            and "heidi-tips" not in entry["message"]
        ]

    def _stage(self) -> Any:
        """The element that the regions are drawn on, which covers the image, once the image is loaded."""
        return self.browser.execute_script(
            "const image = document.querySelector(\"img[alt='image']\");"
            "return image && image.complete && image.naturalWidth ? document.querySelector('.konvajs-content') : null"
        )

    def settle(self) -> None:
        """Waits until two pictures in a row are the same: everything is drawn."""
        before, deadline = None, time.monotonic() + 30
        while (now := self.browser.get_screenshot_as_png()) != before and time.monotonic() < deadline:
            before = now
            time.sleep(0.7)
