"""What happens to every request and answer: who may ask, what a page may do, one line of log.

What always holds: a request that is refused reaches no view.
"""

import logging
import time

from flask import Flask, Response, g, request

from backend.web.access import SECRET_HEADER, Access
from backend.web.cross_site import is_cross_site
from backend.web.problems import problem
from lasagna.logs import logged

logger = logging.getLogger(__name__)

_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of every page: no scripts, nothing from elsewhere, in no frame of another site."""

_OPEN = {"/", "/health"}
_QUIET = {*_OPEN, "/metrics"}
"""Routes that are asked every few seconds."""
_WEBHOOK = "/webhook"
_WEBHOOK_HINT = (
    "in Label Studio, under Settings > Webhooks, give it the address http://USER:PASSWORD@HOST:PORT/webhook, or a "
    f"header {SECRET_HEADER} with the value of LASAGNA_WEBHOOK_SECRET"
)


def add_guards(app: Flask, access: Access) -> None:
    """Has every request of the application checked and logged."""
    app.before_request(lambda: _refusal(access))
    app.after_request(_guard_page)
    app.after_request(_log)


def _route() -> str:
    """The route of the request at hand; "" for a path that is none."""
    return request.url_rule.rule if request.url_rule is not None else ""


def _refusal(access: Access) -> Response | None:
    g.started = time.monotonic()
    if is_cross_site(request):
        return problem(403, "a page of another site sent this request; open the backend's own page and try there")
    if not access.knows_peer(request):
        return problem(
            403,
            "this backend has no password, so it answers only to this machine; set LASAGNA_BASIC_AUTH=USER:PASSWORD, "
            "or, where only trusted machines share the network, LASAGNA_WITHOUT_PASSWORD=yes",
        )
    if not access.knows_host(request):
        return problem(
            403,
            "this backend has no password, so it answers only to this machine's own names; set LASAGNA_ALLOWED_HOSTS "
            "to the name that you reach it by, or LASAGNA_BASIC_AUTH=USER:PASSWORD",
        )
    is_webhook = _route() == _WEBHOOK
    if _route() in _OPEN or access.lets_in(request, webhook=is_webhook):
        return None
    if is_webhook:
        logger.warning("a webhook came without the password and was refused: %s", _WEBHOOK_HINT)
        response = problem(401, f"this backend wants a user name and password: {_WEBHOOK_HINT}")
    else:
        response = problem(401, "this backend wants a user name and password: enter them for the model in Label Studio")
    response.headers["WWW-Authenticate"] = 'Basic realm="lasagna"'
    return response


def _guard_page(response: Response) -> Response:
    if response.mimetype == "text/html":
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        response.headers["Cache-Control"] = "no-store"
    return response


def _log(response: Response) -> Response:
    seconds = time.monotonic() - g.started if "started" in g else 0.0
    level = logging.DEBUG if _route() in _QUIET else logging.INFO
    with logged(project=g.get("project")):
        words = (request.method, request.path, response.status_code, seconds, g.get("said", ""))
        logger.log(level, "%s %s %d %.2f s %s", *words)
    return response
