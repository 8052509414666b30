"""The wire contract: envelope, commands, events, the workflow language; imports nothing of ours."""
