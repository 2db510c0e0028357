"""What dropping experts costs a model in prediction: loss and accuracy against retention and latency.

``python -m wdmoe_opt.benchmarks.what_dropping_costs --out docs`` measures, draws and writes the page.

* `plan`: which policies at which settings, on which texts, over which network;
* `controls`: policies that drop without asking for latency;
* `measure`: held-out text through the model, one (text, curve, setting) after another;
* `results`: the file of raw numbers;
* `statistics`: paired differences, crossings, and their intervals;
* `pictures`, `document`: figures and page, from the file alone.
"""
