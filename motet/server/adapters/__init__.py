"""OpenAI's Responses API and Anthropic's Messages over chat completions: what they ask becomes a chat request, and the
answer's chunks become theirs."""
