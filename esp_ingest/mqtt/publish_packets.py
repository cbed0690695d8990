"""The walk over the PUBLISH packets of what was received: bytes → deliveries, a thousand of them in one loop.

Whatever is no whole PUBLISH packet is left to client.py.
"""

from paho.mqtt.exception import MalformedPacket

from esp_ingest.model import LONG_TOPIC_BYTES, Delivery

PUBLISH, PUBLISH_END = 0x30, 0x40  # the first byte of a PUBLISH lies in between, with DUP, QoS and RETAIN in it
_PUBLISH_QOS1 = 0x32
_MAX_LENGTH_BYTES = 4
_CUT_KEPT_BYTES = 16_384


def walk(
    data: bytes, at: int, deliveries: list[Delivery], connection: int, received_us: int, has_properties: bool
) -> tuple[int, int, int]:
    """Append the PUBLISH packets of ``data`` from ``at`` on, up to the first packet that is another or is not whole.

    Returns (where it stopped, bytes appended as model.weight_of counts them, messages that are not plain new QoS 1).
    ``has_properties`` is MQTT 5. Raises MalformedPacket; what came before the malformed packet is appended. The first
    message is received at ``received_us`` and each further one 1 µs later, so that two of equal content are two. The
    hottest loop of the product: 0.8 µs a message, so no calls but one.
    """
    append, new, of, qos1 = deliveries.append, tuple.__new__, Delivery, _PUBLISH_QOS1
    end = len(data)
    last = end - 1
    size = unusual = 0
    try:
        while at < last:
            first = data[at]
            if first != qos1 and not PUBLISH <= first < PUBLISH_END:
                break
            length = data[at + 1]
            start = at + 2
            if length > 127:
                if start < end and data[start] < 128:
                    length += (data[start] << 7) - 128
                    start += 1
                else:
                    length, start = remaining_length(data, at)
                    if length < 0:
                        break
            stop = start + length
            if stop > end:
                break
            place = start + 2
            start = place + (data[start] << 8 | data[start + 1])
            topic = data[place:start]
            if start - place > LONG_TOPIC_BYTES:
                size += start - place
            if first == qos1:
                qos = 1
                packet_id = data[start] << 8 | data[start + 1]
                start += 2
            else:
                unusual += 1
                qos = first >> 1 & 3
                packet_id = 1
                if qos:
                    packet_id = data[start] << 8 | data[start + 1]
                    start += 2
            if has_properties:
                skip = data[start]
                start += 1
                if skip:
                    start = start + skip if skip < 128 else _after_properties(data, start - 1)
            # No topic means a topic alias, which we never allowed; each of these is a protocol error.
            if start > stop or not topic or not packet_id or qos > 2:
                raise MalformedPacket("PUBLISH")
            append(
                new(of, (topic, data[start:stop], qos, packet_id if qos else 0, connection, received_us, first > 0x37))
            )
            received_us += 1
            size += stop - start
            at = stop
    except IndexError:
        raise MalformedPacket("PUBLISH is too short") from None
    return at, size, unusual


def remaining_length(data: bytes, at: int) -> tuple[int, int]:
    """(remaining length, where the rest starts) of the packet at ``at``; (-1, bytes of header) if that is cut off.

    Raises MalformedPacket for a length of more than four bytes."""
    length = 0
    for place in range(_MAX_LENGTH_BYTES):
        if at + 1 + place >= len(data):
            return -1, len(data) - at
        byte = data[at + 1 + place]
        length |= (byte & 127) << 7 * place
        if byte < 128:
            return length, at + 2 + place
    raise MalformedPacket("remaining length of more than four bytes")


def head_of(data: bytes, start: int, length: int, has_properties: bool) -> tuple[bytes, int, int, bytes, int]:
    """(topic, first byte of the packet, packet id, first bytes of the payload, bytes of the payload) of a PUBLISH that
    is not all here; ``data`` begins with the packet, whose rest begins at ``start`` and has ``length`` bytes. Raises
    MalformedPacket."""
    try:
        place = start + 2
        at = place + (data[start] << 8 | data[start + 1])
        topic = data[place:at]
        packet_id = 0
        if data[0] >> 1 & 3:
            packet_id = data[at] << 8 | data[at + 1]
            at += 2
        if has_properties:
            at = _after_properties(data, at)
    except IndexError:
        raise MalformedPacket("PUBLISH is too short") from None
    size = start + length - at
    if size < 0 or not topic or (data[0] >> 1 & 3 and not packet_id) or data[0] & 6 == 6:
        raise MalformedPacket("PUBLISH")
    return topic, data[0], packet_id, data[at : at + _CUT_KEPT_BYTES], size


def _after_properties(data: bytes, at: int) -> int:
    """Where the property block that starts with its length at ``at`` ends."""
    length, start = remaining_length(data, at - 1)
    if length < 0:
        raise MalformedPacket("properties are cut off")
    return start + length
