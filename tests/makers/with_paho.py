"""Uses a broker through paho-mqtt, as its documentation shows it.

    with_paho.py HOST PORT TLS_PORT CA_FILE WS_PORT

Every claim is tried with MQTT 3.1.1 and 5 over TCP, and the first ones over TLS and WebSocket. Each is printed when it
held; the first that does not ends with an exit code that is not 0.
"""

import importlib.metadata
import queue
import socket
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

HOST, PORT, TLS_PORT, CA_FILE, WS_PORT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
PATIENCE = 30
NAMES = {mqtt.MQTTv31: "3.1", mqtt.MQTTv311: "3.1.1", mqtt.MQTTv5: "5"}


class Client:
    """A client whose events are queues."""

    def __init__(self, name, version, way="tcp", keep=False, will=None):
        self.version, self.keep, self.way = version, keep, way
        kept = {} if version == mqtt.MQTTv5 else {"clean_session": not keep}
        transport = "websockets" if way == "websocket" else "tcp"
        self.paho = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version, transport=transport, **kept
        )
        if way == "tls":
            self.paho.tls_set(ca_certs=CA_FILE)
        if will:
            self.paho.will_set(*will)
        self.connected, self.subscribed, self.messages, self.gone = (queue.Queue() for _ in range(4))
        self.paho.on_connect = lambda _c, _u, flags, code, props: self.connected.put((flags, code, props))
        self.paho.on_subscribe = lambda _c, _u, _mid, codes, _p: self.subscribed.put(codes)
        self.paho.on_message = lambda _c, _u, message: self.messages.put(message)
        self.paho.on_disconnect = lambda *_: self.gone.put(True)

    def connect(self):
        more = {}
        if self.version == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 300 if self.keep else 0
            more = {"clean_start": not self.keep, "properties": properties}
        port = {"tcp": PORT, "tls": TLS_PORT, "websocket": WS_PORT}[self.way]
        self.paho.connect(HOST, port, keepalive=20, **more)
        self.paho.loop_start()
        flags, code, self.properties = self.connected.get(timeout=PATIENCE)
        assert not code.is_failure, code
        self.session_present = flags.session_present
        return self

    def subscribe(self, topic, qos, **more):
        self.paho.subscribe(topic, qos, **more) if not more else self.paho.subscribe(topic, **more)
        codes = self.subscribed.get(timeout=PATIENCE)
        assert [code.value for code in codes] == [qos], codes
        return self

    def publish(self, topic, payload, qos, **more):
        info = self.paho.publish(topic, payload, qos, **more)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), f"{topic} is not acknowledged"

    def message(self):
        return self.messages.get(timeout=PATIENCE)

    def nothing_more(self, marker):
        """Nothing waits before what is sent now."""
        self.publish(marker, b"marker", 1)
        message = self.message()
        assert message.payload == b"marker", (message.topic, message.payload)

    def disconnect(self):
        self.paho.disconnect()
        self.gone.get(timeout=PATIENCE)
        self.paho.loop_stop()

    def vanish(self):
        """The network goes away without a DISCONNECT, and the client does not come back."""
        self.paho.reconnect_delay_set(3600, 3600)
        self.paho.socket().shutdown(socket.SHUT_RDWR)
        self.gone.get(timeout=PATIENCE)


def every_qos(version, way):
    topic = f"makers/paho/{NAMES[version]}/{way}"
    subscriber = Client(f"paho-sub-{version}-{way}", version, way).connect().subscribe(topic, 2)
    publisher = Client(f"paho-pub-{version}-{way}", version, way).connect()
    for number in range(30):
        publisher.publish(topic, f"number {number}", number % 3)
    seen = sorted(int(subscriber.message().payload.split()[1]) for _ in range(30))
    assert seen == list(range(30)), seen
    subscriber.nothing_more(topic)
    publisher.disconnect()
    subscriber.disconnect()


def retained(version):
    topic = f"makers/paho/{NAMES[version]}/retained"
    publisher = Client("", version).connect()
    publisher.publish(topic, b"kept", 1, retain=True)
    late = Client(f"paho-late-{version}", version).connect().subscribe(topic, 1)
    message = late.message()
    assert (message.payload, message.retain) == (b"kept", True)
    late.disconnect()
    publisher.publish(topic, b"", 1, retain=True)
    late = Client(f"paho-later-{version}", version).connect().subscribe(topic, 1)
    late.nothing_more(topic)
    late.disconnect()
    publisher.disconnect()


def will(version):
    topic = f"makers/paho/{NAMES[version]}/will"
    watcher = Client(f"paho-watcher-{version}", version).connect().subscribe(topic, 1)
    Client(f"paho-mortal-{version}", version, will=(topic, b"gone", 1, False)).connect().vanish()
    assert watcher.message().payload == b"gone"
    Client(f"paho-polite-{version}", version, will=(topic, b"gone", 1, False)).connect().disconnect()
    watcher.nothing_more(topic)
    watcher.disconnect()


def session_resumed(version):
    topic = f"makers/paho/{NAMES[version]}/offline"
    name = f"paho-keeper-{version}"
    first = Client(name, version, keep=True).connect().subscribe(topic, 2)
    assert not first.session_present
    first.disconnect()
    publisher = Client(f"paho-meanwhile-{version}", version).connect()
    for number in range(20):
        publisher.publish(topic, str(number), 1 + number % 2)
    publisher.disconnect()
    again = Client(name, version, keep=True).connect()
    assert again.session_present
    messages = [again.message() for _ in range(20)]
    # Order is promised for each QoS by itself [MQTT-4.6.0-6].
    for qos in (1, 2):
        numbers = [int(message.payload) for message in messages if message.qos == qos]
        assert numbers == list(range(qos - 1, 20, 2)), numbers
    again.disconnect()
    forgetful = Client(name, version).connect()
    assert not forgetful.session_present
    forgetful.disconnect()


def properties_travel():
    topic = "makers/paho/5/properties"
    nameless = Client("", mqtt.MQTTv5).connect()
    assert nameless.properties.AssignedClientIdentifier
    given = Properties(PacketTypes.SUBSCRIBE)
    given.SubscriptionIdentifier = 42
    nameless.subscribe(topic, 1, options=SubscribeOptions(qos=1, noLocal=False), properties=given)
    sent = Properties(PacketTypes.PUBLISH)
    sent.PayloadFormatIndicator = 1
    sent.MessageExpiryInterval = 600
    sent.ContentType = "application/json"
    sent.ResponseTopic = "makers/paho/answers"
    sent.CorrelationData = b"\x00\xff"
    sent.UserProperty = [("site", "north"), ("site", "south")]
    sent.TopicAlias = 3
    nameless.publish(topic, b"{}", 1, properties=sent)
    for attempt in range(2):
        got = nameless.message().properties
        assert got.SubscriptionIdentifier == [42], got
        assert (got.PayloadFormatIndicator, got.ContentType) == (1, "application/json"), got
        assert 0 < got.MessageExpiryInterval <= 600, got
        assert (got.ResponseTopic, got.CorrelationData) == ("makers/paho/answers", b"\x00\xff"), got
        assert got.UserProperty == [("site", "north"), ("site", "south")], got
        if attempt == 0:
            # The topic alone, by the alias it was given.
            nameless.paho.publish(topic, b"{}", 1, properties=sent).wait_for_publish(PATIENCE)
    nameless.disconnect()


def hold(claim, name, *arguments):
    claim(*arguments)
    print("held:", name, flush=True)


print("paho-mqtt", importlib.metadata.version("paho-mqtt"), "on Python", sys.version.split()[0], flush=True)
for version in (mqtt.MQTTv31, mqtt.MQTTv311, mqtt.MQTTv5):
    for way in ("tcp", "tls", "websocket"):
        hold(every_qos, f"MQTT {NAMES[version]} over {way}: QoS 0, 1 and 2, each once", version, way)
for version in (mqtt.MQTTv311, mqtt.MQTTv5):
    hold(retained, f"MQTT {NAMES[version]}: retained, and cleared", version)
    hold(will, f"MQTT {NAMES[version]}: a Will of the one that vanishes, none of the one that says goodbye", version)
    hold(session_resumed, f"MQTT {NAMES[version]}: a session goes on where it was", version)
hold(properties_travel, "MQTT 5: properties travel, identifiers are assigned, subscriptions named")
