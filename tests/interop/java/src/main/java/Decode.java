import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cloudevents.CloudEvent;
import io.cloudevents.core.format.EventFormat;
import io.cloudevents.core.provider.EventFormatProvider;
import io.cloudevents.http.HttpMessageFactory;
import io.cloudevents.jackson.JsonCloudEventData;
import io.cloudevents.jackson.JsonFormat;
import io.cloudevents.kafka.KafkaMessageFactory;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.header.internals.RecordHeaders;

/** Reads messages as JSON lines, and writes what the CloudEvents SDK makes of each. */
public class Decode {
    private static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] arguments) throws Exception {
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        for (String line; (line = in.readLine()) != null; ) {
            ObjectNode answer = JSON.createObjectNode();
            try {
                var events = answer.putArray("events");
                for (CloudEvent event : events(JSON.readTree(line))) {
                    events.add(shown(event));
                }
            } catch (Exception error) {
                answer = JSON.createObjectNode().put("error", error.toString());
            }
            out.println(JSON.writeValueAsString(answer));
        }
    }

    private static List<CloudEvent> events(JsonNode message) throws Exception {
        byte[] body = message.get("body").binaryValue();
        String contentType = message.get("content_type").textValue();
        Map<String, String> headers = new HashMap<>();
        message.get("headers").fields().forEachRemaining(header -> headers.put(header.getKey(), header.getValue().textValue()));
        if (message.get("mode").textValue().equals("batch")) {
            // The SDK has no batches: each element is an event in the JSON format.
            EventFormat format = EventFormatProvider.getInstance().resolveFormat(JsonFormat.CONTENT_TYPE);
            List<CloudEvent> events = new ArrayList<>();
            for (JsonNode event : JSON.readTree(body)) {
                events.add(format.deserialize(JSON.writeValueAsBytes(event)));
            }
            return events;
        }
        if (message.get("sink").textValue().equals("kafka")) {
            var record = new RecordHeaders();
            headers.forEach((name, value) -> record.add(name, value.getBytes(StandardCharsets.UTF_8)));
            if (contentType != null) {
                record.add("content-type", contentType.getBytes(StandardCharsets.UTF_8));
            }
            return List.of(KafkaMessageFactory.createReader(record, body).toEvent());
        }
        if (contentType != null) {
            headers.put("content-type", contentType);
        }
        // NATS spells headers as HTTP does.
        return List.of(HttpMessageFactory.createReader(headers, body).toEvent());
    }

    private static ObjectNode shown(CloudEvent event) throws Exception {
        ObjectNode shown = JSON.createObjectNode();
        ObjectNode attributes = shown.putObject("attributes");
        attributes.put("specversion", event.getSpecVersion().toString());
        for (String name : event.getAttributeNames()) {
            Object value = event.getAttribute(name);
            if (value != null) {
                attributes.put(name, value.toString());
            }
        }
        for (String name : event.getExtensionNames()) {
            attributes.put(name, String.valueOf(event.getExtension(name)));
        }
        if (event.getData() instanceof JsonCloudEventData json) {
            shown.set("data", json.getNode());
        } else if (event.getData() != null) {
            shown.put("bytes", event.getData().toBytes());
        }
        return shown;
    }
}
