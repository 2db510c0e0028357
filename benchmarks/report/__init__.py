"""The report of benchmark results: one HTML page, its Markdown, and every picture apart.

``wdmoe-opt bench report`` or ``python -m wdmoe_opt.benchmarks.report RESULTS --out DIR``. The way of the
data: `results` reads and tidies the rows, `relative`, `gaps`, `success`, `times`, `profiles`, `scaling`,
`frontiers`, `stages`, `expectations` and `limitations` are pure functions of them, `pictures` draws what
they return, `page` puts it in order, `render` writes it. Needs the extra ``bench``.
"""
