"""The style sheet of `report.html`. No external font, script or image."""

CSS = """
:root { color-scheme: light dark;
  --bg: #f6f6f3; --panel: #ffffff; --fg: #1b1f24; --muted: #646b75; --line: #dfe1e4;
  --good: #0a7d4f; --bad: #c02a2a; --bad-bg: #fdeceb; --mark: #ffd2cc; --mark-fg: #7d1410;
  --arm0: #2a66d9; --arm1: #cf6200; --arm2: #07866a; --arm3: #8a4fd3; --arm4: #7a818b;
  --arm5: #c2377a; --arm6: #7d7000; --arm7: #0e8ba3; --arm8: #8c5a3c; --arm9: #5b64b8;
  --kind0: #33608f; --kind1: #6fa1cf; --kind2: #b5cde3; --kind3: #d9b44a;
  --kind4: #7a6bb0; --kind5: #9c9c9c; --kind6: #c4572f; --kind7: #5aa17f;
  --phase0: #3d7ab8; --phase1: #e0993a; --phase2: #4d9e6a; --phase3: #b45c9d; --phase4: #c9524a;
  --phase5: #7466b8; --phase6: #8f8a3a; --phase7: #5b8f99; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #14161a; --panel: #1d2025; --fg: #e7e9ec; --muted: #9aa2ad; --line: #343940;
  --good: #4fcf92; --bad: #ff8478; --bad-bg: #3a1d1c; --mark: #6e2a25; --mark-fg: #ffdcd7;
  --arm0: #76a6ff; --arm1: #f79b4b; --arm2: #3fcaa4; --arm3: #bd97f7; --arm4: #a0a8b3;
  --arm5: #f27fb2; --arm6: #cfc04a; --arm7: #5cc6dc; --arm8: #cf9a78; --arm9: #9aa3f0;
  --kind0: #7fb2e6; --kind1: #4a7dae; --kind2: #2d4d6d; --kind3: #d9b44a;
  --kind4: #7a6bb0; --kind5: #9c9c9c; --kind6: #c4572f; --kind7: #5aa17f;
  --phase0: #6ba3dc; --phase1: #eab05c; --phase2: #6fc08c; --phase3: #d184bc; --phase4: #e67b73;
  --phase5: #9c8fe0; --phase6: #bdb75f; --phase7: #83b9c3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.015em; }
h2 { font-size: 20px; margin: 44px 0 4px; letter-spacing: -.01em; }
h2 + p { margin: 0 0 14px; color: var(--muted); max-width: 78ch; }
h3 { font-size: 15px; margin: 0 0 8px; }
small, .muted { color: var(--muted); font-weight: 400; }
small { font-size: 13px; }
.lead { font-size: 17px; max-width: 74ch; margin: 14px 0 22px; }
.lead b { white-space: nowrap; } small.bad { color: var(--bad); }
.alert { background: var(--bad-bg); color: var(--bad); border-left: 4px solid var(--bad);
  padding: 8px 14px; margin: 8px 0; border-radius: 4px; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); }
.card, .panel, figure, .item, .box { background: var(--panel); border: 1px solid var(--line);
  border-radius: 10px; padding: 14px 16px; margin: 0; min-width: 0; }
.card { border-top: 4px solid var(--c); }
.card h3 { display: flex; justify-content: space-between; align-items: baseline; font-size: 18px; }
.card dl { margin: 10px 0 0; }
.card dt { display: flex; justify-content: space-between; font-size: 13px; color: var(--muted);
  gap: 6px; margin-top: 7px; }
.card dt b { white-space: nowrap; color: var(--fg); font-weight: 600; }
.card dd { position: relative; margin: 2px 0 0; height: 6px; border-radius: 3px;
  background: var(--line); }
.card dd i { display: block; height: 6px; border-radius: 3px; background: var(--c); }
.card dd.cost i { opacity: .45; }
.card dd u { position: absolute; top: -2px; height: 10px; width: 2px; background: var(--fg); }
.card > small { display: block; line-height: 1.35; }
.card .group { font-size: 11px; text-transform: uppercase; letter-spacing: .07em;
  color: var(--muted); margin: 12px 0 -4px; }
.big { font-size: 34px; font-weight: 700; line-height: 1.1; letter-spacing: -.02em; }
.copies { display: flex; flex-wrap: wrap; gap: 4px; margin: 2px 0 12px;
  min-height: 50px;
  align-content: flex-start; }
.copies small { flex-basis: 100%; line-height: 1.35; }
.copies b { border: 1.5px solid var(--c); border-radius: 5px; font-size: 11px; font-weight: 600;
  padding: 1px 6px; }
.copies b.solid { background: var(--c); color: var(--panel); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px;
  background: var(--panel); }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 7px 11px; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-size: 12.5px; font-weight: 600; color: var(--muted); vertical-align: bottom; }
th:first-child { text-align: left;
  position: sticky; left: 0; background: var(--panel); z-index: 1; }
tbody th { font-weight: 600; }
td small { display: block; font-size: 12px; line-height: 1.3; }
td small.se { display: inline; white-space: nowrap; }
td small { white-space: normal; }
td small.good { color: var(--good); } td small.bad { color: var(--bad); }
table.wide thead th { white-space: normal; min-width: 50px; line-height: 1.25; }
table.wide th, table.wide td { padding-left: 5px; padding-right: 7px; }
table.wide th:first-child { padding-left: 11px; white-space: nowrap; }
tr.groups th { text-align: left; color: var(--fg); border-left: 1px solid var(--line); }
tr.groups th:first-child { border-left: 0; }
tr.total > * { font-weight: 600; border-top: 1px solid var(--line); }
table.plain { font-size: 13px; } table.plain th, table.plain td { padding: 4px 11px; }
tr.divide > * { border-top: 2px solid var(--line); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
ul.claims { list-style: none; margin: 0; padding: 0; display: grid; gap: 0 26px;
  grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); }
ul.claims li { display: grid; grid-template-columns: 24px 1fr; padding: 6px 0;
  border-bottom: 1px solid var(--line); }
ul.claims li > b { font-size: 16px; } ul.claims small { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin: 0 0 10px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i, h3 > i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; }
h3 > i { margin-right: 8px; vertical-align: -1px; }
.panel h4 { margin: 10px 0 4px; font-size: 13px; font-weight: 500; color: var(--muted); }
.panel h3 small { display: block; margin-left: 20px; }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); }
.panels { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); }
figure { padding: 12px 12px 6px; } figcaption { font-weight: 600; margin: 0 4px 6px; }
svg { display: block; width: 100%; height: auto; } .legend svg { width: 30px; height: 12px; }
svg text { font-size: 12.5px; fill: var(--muted); }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.guide { stroke: var(--muted); stroke-width: 1.3; stroke-dasharray: 5 4; fill: none; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.bar { display: grid; grid-template-columns: 104px 1fr 68px; gap: 9px; align-items: center;
  font-size: 13px; margin: 4px 0; }
.bar > div { display: flex; height: 17px; background: color-mix(in srgb, var(--line) 45%, #0000);
  border-radius: 3px; overflow: hidden; position: relative; }
.bar b { display: block; height: 100%; } .bar em { font-style: normal; text-align: right;
  font-variant-numeric: tabular-nums; }
.bar.shared span { color: var(--muted); font-style: italic; } .bar.shared b { opacity: .55; }
.bar .chance { position: absolute; left: 50%; top: 0; bottom: 0; width: 2px;
  background: var(--fg); opacity: .5; }
.judge .bar { grid-template-columns: minmax(120px, 250px) 1fr 58px; }
.lanes { margin: 0 0 14px; }
.lane { display: grid; grid-template-columns: 92px 1fr; gap: 9px; align-items: center;
  font-size: 13px; margin: 5px 0; }
.lane > span { overflow-wrap: anywhere; line-height: 1.2; }
.lane > div { position: relative; height: 24px; border-radius: 3px; overflow: hidden;
  background: color-mix(in srgb, var(--line) 45%, #0000); }
.lane b { position: absolute; top: 0; bottom: 0; min-width: 1px; }
.lane.axis > div { background: none; height: 18px; overflow: visible; }
.lane.axis i { position: absolute; font-style: normal; color: var(--muted); font-size: 12px;
  transform: translateX(-50%); white-space: nowrap; }
.lane.axis i:first-child { transform: none; }
.gallery { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); }
.item { display: grid; grid-template: auto 1fr / 168px 1fr; gap: 10px 16px; }
.item img { width: 168px; height: 168px; image-rendering: pixelated; border-radius: 6px;
  border: 1px solid var(--line); object-fit: contain; }
.item .truth { font-size: 12.5px; color: var(--muted); margin-top: 6px; line-height: 1.4; }
.item .prompt { grid-column: 1 / -1; font-size: 13px; color: var(--muted); margin: 0; }
.answer { padding: 0 0 8px; font-size: 14px; }
.answer + .answer { border-top: 1px solid var(--line);
  padding-top: 7px; }
.answer > b { font-size: 12.5px; margin-right: 6px; } .answer p { margin: 0; }
mark { background: var(--mark); color: var(--mark-fg); border-radius: 3px; padding: 0 3px;
  text-decoration: line-through; text-decoration-thickness: 1.5px; }
mark.place { background: none; color: inherit; padding: 0;
  text-decoration: underline wavy var(--bad); text-underline-offset: 3px; }
.missing { font-size: 12.5px; color: var(--bad); }
table.words td { white-space: normal; text-align: left; } table.words th { text-align: left; }
table.words td.differs, td.differs small { color: var(--bad); font-weight: 600; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  margin: 8px 0 0; }
footer { margin-top: 40px; color: var(--muted); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 22px 14px 44px; } h1 { font-size: 24px; } .lead { font-size: 16px; }
  .charts, .panels, .gallery, ul.claims { grid-template-columns: 1fr; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 10px; }
  .card { padding: 11px 12px; } .big { font-size: 28px; }
  .item { grid-template-columns: 104px 1fr; gap: 8px 12px; }
  .item img { width: 104px; height: 104px; }
  .bar { grid-template-columns: 98px 1fr 58px; }
  .judge .bar { grid-template-columns: 1fr 70px 52px; }
  th, td { padding: 7px 8px; } }
@media print { .scroll { overflow: visible; } details > * { display: block; } }
"""
