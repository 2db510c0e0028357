"""Your own mixture-of-experts model with its experts behind a wireless network.

    python examples/own_model_in_the_loop.py [MODEL]

MODEL is a folder or a name that transformers knows, of Mixtral's or another supported type; without it a
small random Mixtral runs. Needs wdmoe_opt[capture].
"""

import sys

import transformers

from wdmoe_opt.instances.channels import channel_states
from wdmoe_opt.integrations.transformers import WirelessExperts, model_instance

if len(sys.argv) > 1:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
    tokens = transformers.AutoTokenizer.from_pretrained(sys.argv[1])("The fox ran", return_tensors="pt")
else:
    transformers.set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).eval()
    tokens = {"input_ids": model.dummy_inputs["input_ids"][:1] + 40}

fleet = model_instance(model, fleet="orin-mix-8", width=4096, expert_width=14336)  # priced as Mixtral 8x7B
walk = channel_states("cell-100mhz-moving", 8, states=1000)  # devices walk while tokens are written
for floor in (1.0, 0.9, 0.8):
    with WirelessExperts(model, fleet, channel=walk, min_retention=floor) as network:
        text = model.generate(**tokens, max_new_tokens=16, do_sample=False)
    print(f"keeping {floor:.0%} of the gate weight:", text[0, -16:].tolist())
    print(network.report)
