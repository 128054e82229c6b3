"""The page of a review (Jinja2)."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }} of {{ r.system }}: {{ r.verdict }}</title>
<style>
:root { --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --ground: #f5f7fa; --critical: #b42318; --warning: #b25e09;
  --unknown: #6b3fa0; --info: #2563a8; --good: #2f7a4d; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; line-height: 1.35; overflow-wrap: anywhere; }
p { margin: .35rem 0; }
.soft, .when { color: var(--soft); }
.counts { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; padding: 0; list-style: none; }
.counts li { background: #fff; border: 1px solid var(--line); border-left: 4px solid; border-radius: 4px;
  padding: .35rem .8rem; }
.counts b { font-size: 1.25rem; margin-right: .35rem; }
.critical { border-color: var(--critical) !important; } .warning { border-color: var(--warning) !important; }
.unknown { border-color: var(--unknown) !important; } .info { border-color: var(--info) !important; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
article { background: #fff; border: 1px solid var(--line); border-left: 4px solid; border-radius: 4px;
  padding: .8rem 1rem; margin: .6rem 0; break-inside: avoid; }
.tag { font-size: .75rem; border-radius: 3px; padding: .1rem .4rem; background: var(--line); white-space: nowrap;
  vertical-align: middle; font-weight: 500; }
.tag.new { background: #fde8d0; } .tag.safe { background: #d9f0e1; }
pre { background: #1f2933; color: #e4e7eb; border-radius: 4px; padding: .6rem .8rem; margin: .5rem 0 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
details pre { background: var(--ground); color: var(--ink); border: 1px solid var(--line); }
summary { cursor: pointer; color: var(--info); margin-top: .4rem; }
.box { background: #fff; border: 1px solid var(--line); border-radius: 4px; padding: .8rem 1rem; margin: .6rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: #fff; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td { overflow-wrap: anywhere; }
th.right, td.right { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; display: block; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print { body { background: #fff; } main { padding: 0; } details > * { display: block; } }
</style>
</head>
<body><main>
<header>
<h1>{{ title }} of {{ r.system }}</h1>
<p class="when">{{ day }}.
{% if before %}Last one: {{ before }}; since then {{ r.new|length }} new, {{ r.gone|length }} gone.
{% else %}The first of its kind here, so there is nothing to compare with.{% endif %}</p>
<ul class="counts">
{% for key, word, found in groups %}<li class="{{ key }}"><b>{{ found|length }}</b>{{ word }}</li>{% endfor %}
{% if not groups %}<li>Nothing found</li>{% endif %}
</ul>
{% if r.applied %}<p class="box"><b>Applied:</b> {{ r.applied }}</p>
{% elif safe %}<p class="box">{{ safe|length }} of these can be done by relight itself, blocking nobody, within a
maintenance window: <code>relight review {{ r.kind }} --system {{ r.system }} --apply</code></p>{% endif %}
<dl>{% for name, value in r.facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</header>
{% for key, word, found in groups %}
<section><h2>{{ word }}</h2>
{% for f in found %}
<article class="{{ key }}">
<h3>{{ f.title }}
{% if f.key in r.new %}<span class="tag new">new</span>{% endif %}
{% if f.safe %}<span class="tag safe">safe to apply</span>{% endif %}</h3>
<p class="soft">{{ f.evidence }}</p>
{% if f.fix and f.language == "text" %}<p><b>To do:</b> {{ f.fix }}</p>
{% elif f.fix %}<pre>{{ f.fix }}</pre>{% endif %}
{% if f.outcome %}<p><b>Outcome:</b> {{ f.outcome }}</p>{% endif %}
{% if f.detail %}<details{% if key in ("critical", "warning") %} open{% endif %}><summary>Details</summary>
<pre>{{ f.detail }}</pre></details>{% endif %}
</article>
{% endfor %}
</section>
{% endfor %}
{% if r.gone %}<section><h2>Gone since the last review</h2><div class="box">
{% for key in r.gone %}<p>{{ key }}</p>{% endfor %}</div></section>{% endif %}
{% if charts %}<section><h2>Over time</h2>
{% for c in charts %}<figure class="box" style="margin-inline: 0"><figcaption><b>{{ c.title }}</b></figcaption>
{{ c.svg }}</figure>{% endfor %}</section>{% endif %}
{% for t in r.tables %}<section><h2>{{ t.title }}</h2>
{% if t.rows %}<div class="scroll"><table><thead><tr>
{% for c in t.columns %}<th{% if loop.index0 in t.right %} class="right"{% endif %}>{{ c }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in t.rows %}<tr>
{% for c in row %}<td{% if loop.index0 in t.right %} class="right"{% endif %}>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if t.note %}<p class="soft">{{ t.note }}</p>{% endif %}</section>{% endfor %}
<footer>Written by <code>relight review {{ r.kind }}</code>. Unknown means that it could not be told: neither good nor
bad. Nothing was changed{% if r.applied %} but what is said to be applied{% endif %}.</footer>
</main></body></html>
"""
