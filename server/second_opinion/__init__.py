"""Second opinions: rules that escalate ask another model, a moderation endpoint or a webhook while the reply is held.

types.py      what is asked, what comes back
settings.py   what every target is configured with
openai_judge.py moderation.py webhook.py      the kinds of targets      TARGETS (in config.py)
config.py     the file of targets
client.py     the only module that knows the HTTP client
targets.py    asks one target: deadline, concurrency, breaker
adviser.py    asks on behalf of one choice of a request
metrics.py    what is counted
"""
