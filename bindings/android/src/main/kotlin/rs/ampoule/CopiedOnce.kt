package rs.ampoule

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.nio.file.Files
import java.nio.file.StandardCopyOption.ATOMIC_MOVE

private val ofThisProcess = Any()

/**
 * The file of this [version] in a folder that holds nothing else: copied where it is not there yet, after which other versions are gone.
 *
 * It bears its name only when all of it is on the disk, so whatever ends a copy in its middle leaves a part that the next one writes
 * over. Others that want the same file, in this process and in others, wait for the copy. [proceed] is called between pieces, and ends
 * the copy by throwing.
 *
 * @throws IOException where it cannot be read or written; then nothing of it is left.
 */
internal fun copiedOnce(folder: File, version: String, proceed: () -> Unit, open: () -> InputStream): File {
    val file = File(folder, "$version.safetensors")
    if (file.isFile) return file
    Files.createDirectories(folder.toPath())
    // The system's lock ends with its process, and counts for whole processes.
    synchronized(ofThisProcess) {
        RandomAccessFile(File(folder, "lock"), "rw").use { lock ->
            lock.channel.lock().use {
                if (!file.isFile) copy(File(folder, "part"), file, proceed, open)
            }
        }
    }
    return file
}

private fun copy(part: File, file: File, proceed: () -> Unit, open: () -> InputStream) {
    try {
        FileOutputStream(part).use { output ->
            open().use { input ->
                val piece = ByteArray(1 shl 16)
                while (true) {
                    proceed()
                    val count = input.read(piece)
                    if (count < 0) break
                    output.write(piece, 0, count)
                }
            }
            output.fd.sync()
        }
        Files.move(part.toPath(), file.toPath(), ATOMIC_MOVE)
    } finally {
        part.delete()
    }
    // A model that is open goes on with its file.
    file.parentFile?.listFiles()?.filter { it.name.endsWith(".safetensors") && it != file }?.forEach { it.delete() }
}
