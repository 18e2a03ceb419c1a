"""What MkDocs does to the pages: the tables of settings come from conf/, and formulas become MathML.

Formulas are written as on GitHub: ```math for a block, $`...`$ within a line.
"""

import html
import re

from latex2mathml.converter import convert

SETTINGS = "<!-- the tables of settings -->"


def on_page_markdown(markdown: str, **_) -> str:
    if SETTINGS in markdown:
        from t2i.cli.settings import markdown as tables
        from t2i.cli.settings import settings

        markdown = markdown.replace(SETTINGS, tables(settings()))
    return re.sub(
        r"^```math\n(.*?)^```$",
        lambda block: f'<div class="formula">{convert(block[1], display="block")}</div>',
        markdown,
        flags=re.MULTILINE | re.DOTALL,
    )


def on_page_content(content: str, **_) -> str:
    return re.sub(r"\$<code>(.*?)</code>\$", lambda inline: convert(html.unescape(inline[1])), content)
