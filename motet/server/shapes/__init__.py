"""The shapes of bodies: what requests may say, and what answers look like in the OpenAPI description."""
