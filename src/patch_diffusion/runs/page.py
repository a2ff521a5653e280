"""The HTML skeleton of reports: page, tables, style sheet, and the script that shows values under the pointer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from patch_diffusion.runs.chart import KINDS, LEVELS

_COLOURS = (("c", KINDS), ("n", LEVELS))

STYLE = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--ink:#1d1f23;--soft:#5e636c;--line:#e2e2df;--grid:#ececea;
--good:#1a7f4b;--warn:#a34b00;--warn-back:#fff3e2;
--c0:#1b45b4;--c1:#dc7a1e;--c2:#0fa3a3;--c3:#a648e6;--c4:#5c6000;--c5:#5b001d;
--n0:#2b1a8f;--n1:#6a00a8;--n2:#9b179e;--n3:#bf3984;--n4:#d8576b;--n5:#e97257;--n6:#ee9040;--n7:#d9a520}
@media screen and (prefers-color-scheme:dark){:root{--back:#15171a;--card:#1d2024;--ink:#e8e9eb;--soft:#a0a6b0;
--line:#32363c;--grid:#2a2d32;--good:#4cc98a;--warn:#f0a860;--warn-back:#35291a;
--c0:#3f7fb0;--c1:#fca066;--c2:#30e6e2;--c3:#a85cff;--c4:#f2f05a;--c5:#d8304a;
--n0:#8f86ff;--n1:#b070ff;--n2:#d06be0;--n3:#ea6fb5;--n4:#f57f8c;--n5:#fb9b6f;--n6:#fdb95a;--n7:#f3dc4f}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:1160px;margin:auto;padding:24px 20px 48px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}
h2{font-size:17px;margin:36px 0 12px}
h3{font-size:14px;margin:10px 0 4px}h3:first-child{margin-top:0}
small,.soft{color:var(--soft);font-size:13px;font-weight:400}
.state{font-weight:600;color:var(--good)}
.meter{height:6px;border-radius:3px;background:var(--line);margin:14px 0 18px;overflow:hidden}
.meter div{height:100%;background:var(--c0)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px}
.tiles div,.chart,.box{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.tiles b{display:block;font-size:20px;font-weight:600;line-height:1.3}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:14px}
figure{margin:0;min-width:0}
figcaption{font-weight:600}
.key{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px;color:var(--soft);min-height:22px}
.key b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.key i{display:inline-block;width:12px;height:3px;border-radius:2px;background:var(--own);margin:0 5px 3px 0}
.key .at{margin-left:auto}
.plot{display:grid;grid-template-columns:auto 1fr;grid-template-rows:190px 20px;margin-top:8px;font-size:12px;
color:var(--soft);font-variant-numeric:tabular-nums}
.y,.area,.x{position:relative}
.y{min-width:48px}
.y span{position:absolute;right:8px;white-space:nowrap;transform:translateY(-50%)}
.x{grid-column:2}
.x span{position:absolute;transform:translateX(-50%);top:2px;white-space:nowrap}
.x span:first-child{transform:none}
.x span:last-child:not(:first-child){transform:translateX(min(-50%,0px))}
.area{touch-action:pan-y;border-bottom:1px solid var(--line)}
svg{position:absolute;width:100%;height:100%;overflow:visible}
path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid);stroke-width:1}
.line{stroke:var(--own);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.dashed .line{stroke-dasharray:7 5}
.dashed i{background:repeating-linear-gradient(90deg,var(--own) 0 4px,transparent 4px 6px)}
em{font-style:normal;font-weight:700;color:var(--own)}
.ended{padding-right:18px}
.area em{position:absolute;transform:translate(5px,-50%);line-height:1}
.guide{stroke:var(--own);stroke-width:1.5;stroke-dasharray:5 4}
.dot{stroke:var(--own);stroke-width:8;stroke-linecap:round}
.band{fill:var(--own);opacity:.16}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);display:none;pointer-events:none}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(46%,200px),1fr));gap:12px;margin-bottom:16px}
.beside figure{max-width:480px}
.beside img,.samples img{display:block;width:100%;border-radius:6px;border:1px solid var(--line)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);font-weight:400}
tr:last-child>*{border-bottom:0}
th{color:var(--soft);width:1%;white-space:nowrap}
th wbr{display:none}
td{font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
.wide th,.wide td{width:auto;white-space:nowrap}
.wide th:first-child{position:sticky;left:0;background:var(--card)}
.choices{display:flex;flex-wrap:wrap;gap:8px 18px;margin-bottom:12px;font-size:14px;color:var(--soft)}
.choices select{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:4px 6px}
[hidden]{display:none}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px;align-items:start}
.warning{color:var(--warn);background:var(--warn-back)}
summary{cursor:pointer;color:var(--soft)}
code{font:13px ui-monospace,monospace}
@media(max-width:600px){main{padding:16px 12px 32px}.tiles{grid-template-columns:1fr 1fr}h1{font-size:22px}
.y{min-width:42px}th{white-space:normal;width:36%}.wide th{white-space:nowrap;width:auto}th wbr{display:inline}}
@media print{body{background:none}main{max-width:none;padding:0}*{print-color-adjust:exact}
figure,.box,.tiles,tr{break-inside:avoid}h2,h3{break-after:avoid}.choices{display:none}.wide{overflow:visible}
.wide th,.wide td{white-space:normal}.two,.charts{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}}
"""
STYLE += "".join(f".{kind}{index}{{--own:var(--{kind}{index})}}" for kind, num in _COLOURS for index in range(num))

# Values under the pointer replace the newest ones in the key of a chart.
SCRIPT = """
for(const chart of document.querySelectorAll('.chart')){
const data=JSON.parse(chart.querySelector('script').textContent),area=chart.querySelector('.area'),
cursor=chart.querySelector('.cursor'),at=chart.querySelector('.at'),shown=[...chart.querySelectorAll('.key b')],
newest=shown.map(b=>b.textContent);
const nearest=(points,step)=>points.reduce((a,b)=>Math.abs(b[0]-step)<Math.abs(a[0]-step)?b:a);
area.addEventListener('pointermove',event=>{
const box=area.getBoundingClientRect(),part=Math.min(Math.max((event.clientX-box.left)/box.width,0),1),
here=data.first+part*(data.last-data.first),
found=data.curves.map(points=>nearest(points,here)),
step=found.reduce((a,b)=>Math.abs(b[0]-here)<Math.abs(a[0]-here)?b:a)[0];
found.forEach((point,index)=>shown[index].textContent=point[1]);
at.textContent=data.over+' '+(step<100?Math.round(100*step)/100:Math.round(step)).toLocaleString('en');
cursor.style.display='block';cursor.style.left=100*(step-data.first)/(data.last-data.first)+'%'});
area.addEventListener('pointerleave',()=>{newest.forEach((value,index)=>shown[index].textContent=value);
at.textContent='';cursor.style.display='none'})}
for(const place of document.querySelectorAll('[data-choose]')){
const fields=[...place.querySelectorAll('select')],show=()=>{for(const part of place.querySelectorAll('[data-shown]'))
part.hidden=!fields.every(field=>part.dataset.shown.split('|').includes(field.value)||part.dataset.any===field.name)};
for(const field of fields)field.addEventListener('change',show);show()}
"""


def page(title: str, body: str) -> str:
    """Return a complete HTML page that needs no other files."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Even if something from the run got past the escaping, the page could load nothing and send nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>{body}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def table(rows: list[tuple[str, str]]) -> str:
    """Return an HTML table with a row for each (name, text); both are escaped here."""
    lines = "".join(f"<tr><th>{_breakable(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{lines}</table>"


def wide_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table with a head row, scrolled on narrow pages; a row begins with its name. All is escaped."""
    lines = ["".join(f'<th scope="col">{escape(name)}</th>' for name in head)]
    for first, *others in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        lines.append(f'<th scope="row">{escape(first)}</th>{cells}')
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def option_text(value: Any) -> str:
    """Format the value of a training option as readable text."""
    if isinstance(value, dict):
        return " ".join(f"{name}={option_text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(map(option_text, value)) or "none"
    return f"{value:,g}" if isinstance(value, float) else str(value)


def _breakable(name: str) -> str:
    """Return an option's name as HTML that a narrow page can break between its words."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")
