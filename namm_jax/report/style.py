"""How the report looks: wide and narrow screens, light and dark ones."""

# Figures keep a white ground in the dark, and a least width at which their text can be read:
# narrower screens scroll them sideways, and never the page.
STYLE = """
:root {
  --ground: #fff; --text: #1b1d21; --faint: #5d6470; --line: #d9dce1; --panel: #f4f5f7;
  --link: #0b5cad
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16181c; --text: #e6e8eb; --faint: #a3abb8; --line: #3a3f48; --panel: #21252b;
    --link: #7ab8ff
  }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--ground);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 }
h2 {
  font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .5rem;
  border-top: 1px solid var(--line)
}
h3 { font-size: 1rem; margin: .5rem 0 }
p { max-width: 44rem; margin: .5rem 0 }
a { color: var(--link) }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; margin: 0; padding: 0 }
.result { font-weight: 600 }
.scroll { overflow-x: auto }
.runs {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 36rem), 1fr))
}
figure { margin: .5rem 0; min-width: 0 }
.card { background: #fff; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem }
.card img {
  display: block; width: 100%; min-width: 34rem; max-width: 70rem; margin: 0 auto; height: auto
}
table {
  border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal
}
th, td {
  padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap
}
th:first-child {
  text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--ground)
}
th[scope=row] { white-space: normal; min-width: 8.5rem }
thead th { color: var(--faint); vertical-align: bottom; white-space: normal }
th[scope=rowgroup] { padding-top: 1rem; font-weight: 600 }
.facts td { text-align: left }
code, pre { font: .85rem/1.5 ui-monospace, monospace }
th code { display: block; color: var(--faint) }
pre {
  background: var(--panel); padding: .75rem; border-radius: .5rem; white-space: pre-wrap;
  margin: .5rem 0
}
details { margin: .75rem 0 }
summary { cursor: pointer; color: var(--link) }
"""
