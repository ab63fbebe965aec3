"""What a person tries first: captions, chats in the terminal and in the browser, where a model looks."""
