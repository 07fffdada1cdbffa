"""Sends notices (`hub_service.domain.notices`) by mail and to a webhook, where the deployment has set that up.

What waits is in memory: a restart loses what was not sent yet, and may tell once more of approvals that end soon.
"""
