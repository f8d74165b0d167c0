package rs.ampoule

import android.content.Context
import android.content.res.AssetFileDescriptor
import java.io.File
import java.io.FileNotFoundException
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.sync.withPermit
import kotlinx.coroutines.withContext

/** From where a model among an app's assets was opened. */
public sealed interface AssetPlace {
    /** Where it lies in the APK: it takes no other room, and is mapped if [OpenOptions.load] does not say otherwise. */
    public data object InApk : AssetPlace

    /** A copy, since the APK holds it compressed; `noCompress += "safetensors"` spares it. */
    public data class Copied(
        /** In the app's own folder that is not backed up. It is made once for each version of the app. */
        val file: File,
    ) : AssetPlace
}

/** A model that was opened from an app's assets; closing it closes the model. */
public class AssetModel<M : Model> internal constructor(
    /** The model. */
    public val model: M,
    /** From where it was opened. */
    public val place: AssetPlace,
) : AutoCloseable by model {
    /** The model. */
    public operator fun component1(): M = model

    /** From where it was opened. */
    public operator fun component2(): AssetPlace = place
}

/**
 * Opens bundles among an app's assets: where they lie in the APK if they are stored uncompressed, else from a copy.
 *
 * Each function suspends while it opens, and throws
 * [AmpouleException.FetchBundle] where there is no such asset or it is damaged,
 * [AmpouleException.UpdateApp], [AmpouleException.UseCpu] and [AmpouleException.FixInput] as `open` of the model does, and
 * [java.io.IOException] where a copy cannot be written, as on a full disk.
 */
public object AmpouleAssets {
    /** Opens the asset [name], a path below `assets/`, as an [Extractor]. */
    public suspend fun extractor(context: Context, name: String, options: OpenOptions = OpenOptions()): AssetModel<Extractor> =
        opened(context, name) { path, offset, length -> Extractor.openBlocking(path, options, offset, length) }

    /** Opens the asset [name], a path below `assets/`, as a [Classifier]. */
    public suspend fun classifier(context: Context, name: String, options: OpenOptions = OpenOptions()): AssetModel<Classifier> =
        opened(context, name) { path, offset, length -> Classifier.openBlocking(path, options, offset, length) }

    /** Opens the asset [name], a path below `assets/`, as an [Embedder]. */
    public suspend fun embedder(context: Context, name: String, options: OpenOptions = OpenOptions()): AssetModel<Embedder> =
        opened(context, name) { path, offset, length -> Embedder.openBlocking(path, options, offset, length) }

    private suspend fun <M : Model> opened(context: Context, name: String, open: (String, Long, Long?) -> M): AssetModel<M> {
        withContext(threads) { stored(context, name) }?.use {
            // The library opens the file anew by this name, so the descriptor is needed no longer than that.
            val path = "/proc/self/fd/${it.parcelFileDescriptor.fd}"
            return permits.withPermit { made { AssetModel(open(path, it.startOffset, it.length), AssetPlace.InApk) } }
        }
        val coroutine = currentCoroutineContext()
        // Calls go on meanwhile, and who waits for another's copy waits in no thread.
        val file = copying.withLock { withContext(threads) { copied(context, name, coroutine::ensureActive) } }
        return permits.withPermit { made { AssetModel(open(file.path, 0, null), AssetPlace.Copied(file)) } }
    }

    private val copying = Mutex()

    /** Null where the APK holds it compressed. */
    private fun stored(context: Context, name: String): AssetFileDescriptor? = try {
        context.assets.openFd(name)
    } catch (_: FileNotFoundException) {
        null
    }

    private fun copied(context: Context, name: String, proceed: () -> Unit): File {
        // Every installation of the app has another time, and may have another bundle.
        val version = context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime.toString()
        val open = {
            try {
                context.assets.open(name)
            } catch (_: FileNotFoundException) {
                throw AmpouleException.FetchBundle("there is no asset of the name \"$name\" in this app")
            }
        }
        return copiedOnce(File(context.noBackupFilesDir, "ampoule/$name"), version, proceed, open)
    }
}
