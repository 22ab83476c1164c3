import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;

/**
 * Offsets in, what Parallel Consumer's own encoders make of them out: a line for each encoding. The same program runs
 * with every release, so it goes by reflection. With the argument "streams", Kafka Streams' metadata instead.
 */
public class Vectors {
    public static void main(String[] args) throws Exception {
        if (args[0].equals("streams")) {
            streams();
            return;
        }
        String release = args[0];
        long billions = 5_000_000_000L;
        maps(release, "one", 100, 102, of(100));
        maps(release, "every-second", 1_000, 1_041, step(1_000, 1_040, 2));
        maps(release, "whole-bytes", 7, 71, union(of(7), step(20, 30, 1)));
        maps(release, "open-at-the-end", 7, 57, union(of(7), step(47, 57, 1)));
        maps(release, "base-done", 7, 17, of(10));
        maps(release, "nothing-above", 55, 55, of());
        maps(release, "none-open", 55, 60, of());
        maps(release, "far", 0, 70_000, union(of(0), step(40_000, 40_010, 1)));
        maps(release, "sparse", billions, billions + 300_001, step(billions, billions + 300_000, 1_000));
        TreeSet<Long> random = of(billions);
        long state = 1;
        for (long offset = billions; offset < billions + 2_999; offset++) {
            state = state * 6364136223846793005L + 1442695040888963407L;
            if (state >>> 61 == 0) {
                random.add(offset);
            }
        }
        maps(release, "random", billions, billions + 3_000, random);
    }

    static void maps(String release, String name, long base, long end, TreeSet<Long> open) throws Exception {
        String ranges = "";
        for (Long offset : open) {
            if (!open.contains(offset - 1)) {
                ranges += (ranges.isEmpty() ? "" : ",") + (offset - base);
            }
            if (open.contains(offset - 1) && !open.contains(offset + 1)) {
                ranges += "-" + (offset - base);
            }
        }
        for (Map.Entry<String, byte[]> entry : encode(base, end, open).entrySet()) {
            String text = Base64.getEncoder().encodeToString(entry.getValue());
            // A commit would not hold more.
            if (text.length() <= 4096) {
                String encoding = entry.getKey();
                System.out.println(String.join("\t", release, name, encoding, "" + base, "" + end, ranges, text));
            }
        }
    }

    static Map<String, byte[]> encode(long base, long end, TreeSet<Long> open) throws Exception {
        Class<?> encoder;
        try {
            encoder = Class.forName("io.confluent.parallelconsumer.offsets.OffsetSimultaneousEncoder");
        } catch (ClassNotFoundException e) {
            encoder = Class.forName("io.confluent.parallelconsumer.OffsetSimultaneousEncoder");
        }
        try {
            Field forced = encoder.getDeclaredField("compressionForced");
            forced.setBoolean(null, true);
        } catch (NoSuchFieldException e) {
            // Releases before it pack only what is long.
        }
        var constructor = encoder.getDeclaredConstructors()[0];
        constructor.setAccessible(true);
        Method invoke = encoder.getMethod("invoke");
        invoke.setAccessible(true);
        Method map = encoder.getMethod("getEncodingMap");
        map.setAccessible(true);
        // Later releases ask for the highest done offset, earlier ones for the next.
        boolean next = constructor.getParameterTypes()[1] == Long.class;
        Map<String, byte[]> encodings = new TreeMap<>();
        try {
            Object done = constructor.newInstance(base, next ? end : end - 1, open);
            invoke.invoke(done);
            for (var entry : ((Map<?, ?>) map.invoke(done)).entrySet()) {
                Method magic = entry.getKey().getClass().getMethod("getMagicByte");
                magic.setAccessible(true);
                byte[] data = (byte[]) entry.getValue();
                byte[] bytes = new byte[1 + data.length];
                bytes[0] = (byte) magic.invoke(entry.getKey());
                System.arraycopy(data, 0, bytes, 1, data.length);
                encodings.put(((Enum<?>) entry.getKey()).name(), bytes);
            }
        } catch (java.lang.reflect.InvocationTargetException e) {
            System.err.println("not encoded: " + e.getCause());
        }
        return encodings;
    }

    static void streams() throws Exception {
        String internals = "org.apache.kafka.streams.processor.internals.";
        Class<?> processor = Class.forName(internals + "ProcessorMetadata");
        Class<?> partition = Class.forName(internals + "TopicPartitionMetadata");
        for (Map<String, Long> times : List.of(Map.<String, Long>of(), Map.of("KSTREAM-AGGREGATE-0000000003", 1_700_000_000_000L))) {
            for (long time : new long[] {-1, 0, 1_700_000_000_000L}) {
                Object metadata = processor.getConstructor(Map.class).newInstance(times);
                Object both = partition.getConstructor(long.class, processor).newInstance(time, metadata);
                System.out.println(partition.getMethod("encode").invoke(both));
            }
        }
    }

    static TreeSet<Long> of(long... offsets) {
        TreeSet<Long> set = new TreeSet<>();
        for (long offset : offsets) {
            set.add(offset);
        }
        return set;
    }

    static TreeSet<Long> step(long from, long to, long step) {
        TreeSet<Long> set = new TreeSet<>();
        for (long offset = from; offset < to; offset += step) {
            set.add(offset);
        }
        return set;
    }

    static TreeSet<Long> union(TreeSet<Long> a, TreeSet<Long> b) {
        a.addAll(b);
        return a;
    }
}
