"""The page of a search, as HTML and as Markdown."""

from __future__ import annotations

from sit_deploy.report.markdown import escaped, search_blocks, table
from sit_deploy.report.page import template
from sit_deploy.report.search_record import SearchRecord
from sit_deploy.report.search_view import search_view


def render_search(record: SearchRecord, form: str = "html") -> str:
    """Return the page of a search, "html" or "md"; every value of it is escaped."""
    view = search_view(record)
    subtitle = f"Searched {record.date[:10]} on {record.where} by sit-deploy"
    if form == "md":
        blocks = [f"# {escaped(view['title'])}", escaped(subtitle), *search_blocks(view)]
        blocks += ["## Facts", table(("", ""), view["facts"], 2)]
        return "\n\n".join(blocks) + "\n"
    from markupsafe import Markup

    shown = {**view, "plot": Markup(view["plot"]())}
    return template("search.html.j2").render(subtitle=subtitle, view=shown) + "\n"
