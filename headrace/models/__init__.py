"""Model families as declarations: a checkpoint's config becomes a ``Spec``, and one decoder builds itself from it.

Owns specs, the decoder, weight names and the streaming loader; does not know batches, requests or HTTP.
"""
