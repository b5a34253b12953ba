#!/usr/bin/env bash
# lm-eval: `pip install 'lm-eval[api]'`. Tasks of this folder on the demo family; any task of lm-eval runs so.
# It cannot stream and needs no tools. Scoring asks for one prompt's log-probs, which members that read different
# prompts do not have: compositions that it scores are named in the operator's file and read one prompt.
set -euo pipefail
cd "$(dirname "$0")"
url=${MOTET_URL:-http://127.0.0.1:8000/v1}
export HF_DATASETS_OFFLINE=1 # the data lies in this folder

score() { # score MODEL: log-likelihoods; the tokenizer is the server's
  lm_eval run --model local-completions --tasks born --include_path . \
    --model_args "model=$1,base_url=$url/completions,tokenizer_backend=remote"
}
generate() { # generate MODEL TASK
  lm_eval run --model local-chat-completions --tasks "$2" --include_path . --apply_chat_template \
    --model_args "model=$1,base_url=$url/chat/completions"
}

score large-unlearned # or a plain model: large-chat
generate large-proxy born_said
generate large born_said_composed # the composition is in the task's generation_kwargs
