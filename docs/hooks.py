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

        plain = re.sub(r"(?<![`\\])\b_target_\b", "`_target_`", tables(settings()))  # not in italics
        markdown = markdown.replace(SETTINGS, plain)
    return re.sub(
        r"^```math\n(.*?)^```$",
        lambda block: f'<div class="formula">{convert(block[1], display="block")}</div>',
        markdown,
        flags=re.MULTILINE | re.DOTALL,
    )


def on_page_content(content: str, **_) -> str:
    content = re.sub(r"\$<code>(.*?)</code>\$", lambda inline: convert(html.unescape(inline[1])), content)
    return re.sub(r"<td>.*?</td>", lambda cell: re.sub(r"<code>.*?</code>", _breakable, cell[0]), content, flags=re.S)


def _breakable(code: re.Match) -> str:
    """Code in a table that a narrow screen may break within long names, but not before a file's suffix."""
    suffix = r"(?!(?:csv|html|jsonl?|parquet|png|py|safetensors|yaml)\b)"
    return re.sub(rf'(?<=\w)([._/=,:]){suffix}(?=[\w$"~])', r"\1<wbr>", code[0].removesuffix("</code>")) + "</code>"
