"""`python -m benchmarks.serving_baseline BASE ADAPTER PORT`: one `generate` a request, behind HTTP.

What `benchmarks.serving` compares with: FastAPI and uvicorn, one model, PEFT, transformers' own loop.
"""

import sys
import threading
from typing import Any, cast

from ftaas_pipelines.inference import process

process.prepare(1)

import torch  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

app = FastAPI()
torch.set_num_threads(1)
_tokenizer: Any = AutoTokenizer.from_pretrained(sys.argv[1])
_model: Any = PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32), sys.argv[2]
)
_model = _model.merge_and_unload().eval()
_lock = threading.Lock()


@app.post("/v1/chat/completions")
def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One question, alone."""
    text = _tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
    ids = _tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with _lock, torch.inference_mode():
        out = cast(Any, _model.generate(**ids, max_new_tokens=request["max_tokens"], do_sample=False))
    said = _tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"choices": [{"message": {"content": said}}]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
