"""Calls an agent's API as a client of any language does: standard input says what, in JSON."""

from __future__ import annotations

import json
import ssl
import sys
from typing import Any

import grpc
from cryptography import x509


def main() -> None:
    asked = json.load(sys.stdin)
    credentials = grpc.ssl_channel_credentials(asked["ca"].encode())
    options = [("grpc.ssl_target_name_override", asked["node"])]
    metadata = (("authorization", f"Bearer {asked['token']}"),) if asked["token"] else ()
    answer: dict[str, Any] = {"code": "OK", "text": "", "reason": "", "messages": [], "serial": 0}
    with grpc.secure_channel(asked["address"], credentials, options) as channel:
        call = channel.unary_stream(
            f"/grit.agent.v1.Agent/{asked['method']}",
            request_serializer=None,
            response_deserializer=None,
        )
        try:
            for message in call(
                bytes.fromhex(asked["request"]), metadata=metadata, timeout=20, wait_for_ready=True
            ):
                answer["messages"].append(message.hex())
        except grpc.RpcError as error:
            answer |= {"code": error.code().name, "text": error.details()}
            for datum in error.trailing_metadata() or ():
                if datum.key == "grit-reason":
                    answer["reason"] = datum.value
    host, _, port = asked["address"].rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)))
    answer["serial"] = x509.load_pem_x509_certificate(pem.encode()).serial_number
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
