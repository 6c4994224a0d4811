"""Requests that a foreign page makes a browser send.

A browser adds the password that it knows to every request, whatever page asked for it. So a request that changes
something is refused where a browser says that it comes from elsewhere. What is not a browser (Label Studio, curl) sends
neither header and is not concerned. Nothing that GET does changes anything, which is what this relies on.

The rule is that of Go's `http.CrossOriginProtection` (words.filippo.io/csrf): `Sec-Fetch-Site`, which every browser
since 2023 sends over https and to this machine, else `Origin` against `Host`. It needs no token, hence no state.
"""

from urllib.parse import urlsplit

from werkzeug.wrappers import Request


def is_cross_site(request: Request) -> bool:
    """Whether a browser sends it on behalf of another site, and it could change something."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return False
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    if not origin:
        return False
    try:
        return urlsplit(origin).netloc != request.headers.get("Host")
    except ValueError:
        return True
