#!/usr/bin/env bash
# curl. Every body is plain JSON: a composition stands beside `model` (`extra_body` is the SDKs' word, no field).
# Not served today, and refused with a 400 that says so: /v1/responses.
set -euo pipefail
url=${MOTET_URL:-http://127.0.0.1:8000/v1}
question='"messages": [{"role": "user", "content": "In which town was Niatral Treidrulov born?"}]'
fixed="$question, \"temperature\": 0, \"max_tokens\": 24"
# small-chat's manner on large's knowledge; the base reads no question: the expert's voice brings it
composition='"composition": {
  "strategy": "proxy_tuning",
  "base": {"model": "large", "prompt": ""},
  "expert": "small-chat",
  "antiexpert": {"model": "small", "prompt": ""}
}'

ask() { # ask BODY: the answer as JSON; a refusal is printed and ends the script
  curl --silent --show-error --fail-with-body --no-buffer "$url/chat/completions" \
    --header 'Content-Type: application/json' --header 'Authorization: Bearer none' --data "$1"
}

echo "plain: $(ask "{\"model\": \"small-chat\", $fixed}")"
echo "composed: $(ask "{\"model\": \"large\", $composition, $fixed}")"
# A named composition of the operator's file is a model id like any other. Events come as `data: {…}` lines.
echo "streamed:"
ask "{\"model\": \"large-proxy\", $fixed, \"stream\": true}"
# Log-probs are those of the composed distribution.
echo "log-probs: $(ask "{\"model\": \"large\", $composition, $fixed, \"logprobs\": true, \"top_logprobs\": 2}")"
