"""Web pages that are one file: templates of a package, in one style (`templates/page.css`)."""

import functools

from jinja2 import ChoiceLoader, Environment, PackageLoader


@functools.cache
def page_environment(package: str = "lasagna") -> Environment:
    """Templates of a package's folder `templates`; what they include may also be ours. Everything is escaped."""
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "lasagna"))])
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
